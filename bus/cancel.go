package bus

import "fmt"

// Cancellation takes back a message that was published with [WithDeliverAt] or [WithDelay], and is not due yet. It is an event: publish
// it to the topic of that message, by Publish, [Emit] or an outbox.
//
//	b.Publish(ctx, "reminders", bus.Cancellation{Key: order, ID: reminder})
//
// Its key brings it to where each group keeps the delayed message, behind it. The group's router then drops all delayed messages
// with this key and id, durably and before the cancellation itself is settled. No handler sees either. A message that is due, or
// unknown, is left alone, and that is no error: whoever has to know which came first asks the handler. Once Publish has returned,
// a cancellation takes effect when it is its turn in the topic, as every message.
//
// Who consumes the topic without Millrace sees a message of the type [TypeCancellation] with the header [HeaderCancels].
type Cancellation struct {
	// Key is the key of the delayed message, which needs one: without it nobody knows which lane it is in.
	Key string
	// ID is its id ([WithID]).
	ID string
}

// TypeCancellation is the type of the message that a [Cancellation] is published as, and HeaderCancels its header with the id of
// what it cancels.
const (
	TypeCancellation = "millrace.cancellation"
	HeaderCancels    = "cancels"
)

// message is the cancellation on the wire. Its payload is empty and not nil: in a compacted topic that would delete the key's last message.
func (c Cancellation) message() (*Message, error) {
	if c.Key == "" || c.ID == "" {
		return nil, fmt.Errorf("%w: Cancellation has the key %q and the id %q: want both of the delayed message; give one that may be cancelled a key", ErrInvalid, c.Key, c.ID)
	}
	return &Message{Key: c.Key, Type: TypeCancellation, Headers: Headers{{HeaderCancels, c.ID}}, Payload: []byte{}}, nil
}
