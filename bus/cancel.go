package bus

import "fmt"

// Cancellation takes back a message published with [WithDeliverAt] or [WithDelay] that is not due
// yet. It is an event: publish it to the topic of that message, by Publish, [Emit] or an outbox.
//
//	b.Publish(ctx, "reminders", bus.Cancellation{Key: order, ID: reminder})
//
// The key brings the cancellation, behind the delayed message, to the place where each group keeps
// that message. The group's router drops all delayed messages with this key and id. It does so
// durably and before it settles the cancellation. No handler sees either message.
//
// A cancellation of a due or unknown message does nothing and is no error. To learn which came
// first, ask the handler. After Publish has returned, the cancellation takes effect in its order in
// the topic, like every message.
//
// A foreign consumer of the topic sees a message of the type [TypeCancellation] with the header
// [HeaderCancels].
type Cancellation struct {
	// Key is the key of the delayed message. It is required: the key decides the message's lane.
	Key string
	// ID is the id of the delayed message ([WithID]).
	ID string
}

// TypeCancellation is the type of the message that carries a [Cancellation]. HeaderCancels is its
// header with the id of the cancelled message.
const (
	TypeCancellation = "millrace.cancellation"
	HeaderCancels    = "cancels"
)

// message is the cancellation on the wire. Its payload is empty and not nil: in a compacted topic a
// nil payload would delete the key's last message.
func (c Cancellation) message() (*Message, error) {
	if c.Key == "" || c.ID == "" {
		return nil, fmt.Errorf("%w: Cancellation has the key %q and the id %q: want both of the delayed message; publish a message that may be cancelled with a key", ErrInvalid, c.Key, c.ID)
	}
	return &Message{Key: c.Key, Type: TypeCancellation, Headers: Headers{{HeaderCancels, c.ID}}, Payload: []byte{}}, nil
}
