package bus

import (
	"context"
	"time"
)

// Driver connects a [Bus] to one broker. Applications call the Bus and never a Driver. Authors of drivers find the
// whole contract, with the poison store and the optional abilities, in package bus/driver.
//
// A driver owns mechanism: lanes, ownership and its epochs, positions, repair of connections. It retries broken
// connections in the background with jittered back-off, while callers wait within their context. The router owns
// policy: order by key, retries, bounds, draining. It is the same on every broker.
//
// All methods are safe for concurrent use. After Close they fail with [ErrClosed].
type Driver interface {
	// Publish appends msgs to topic in their order, and returns nil once all are durable. It must not keep msgs or
	// change them; the payloads' and headers' memory it may keep. The bus has validated and completed the messages.
	// A failure is a *PublishError, index-aligned with msgs, whose entries are *Error values that say whether the
	// message is definitely not published.
	Publish(ctx context.Context, topic string, msgs []*Message) error

	// Subscribe makes this process a member of the group on the topic. What the broker cannot honour in s is an
	// error here that wraps ErrUnsupported, never later. It may return before any lane is assigned. ctx bounds the call;
	// the source lives until its Close or the driver's.
	Subscribe(ctx context.Context, s Subscription, o LaneObserver) (Source, error)

	Capabilities() Capabilities

	// Close ends everything, sources included, within ctx. It is idempotent.
	Close(ctx context.Context) error
}

// Capabilities states what a broker can do beyond the contract's musts. Conformance checks each claim.
type Capabilities struct {
	// Broker is the name in errors, logs and reports: "kafka".
	Broker string
	// Durable: messages and a group's position outlive the process and the broker's restart.
	Durable bool
	// Replay: a group that comes late is given what was published before, as far as retention goes.
	Replay bool
	// StartAt: a new group may start at a point in time.
	StartAt bool
	// Parking: messages can be put aside at the broker until they are due ([ParkingSource], [Injector]), which makes
	// long delays durable.
	Parking bool
	// Transactions: what handlers emit can be published in one transaction with the settlement ([TransactionalSource]).
	Transactions bool
	// Serial: a lane may give its next message only when the one before is settled. Then no more handlers run than there
	// are lanes, and a message that waits for its retry holds up its lane.
	Serial bool
	// MaxMessage is the largest [Message.Size] that is accepted, if the driver knows one; 0 otherwise.
	MaxMessage int
}

// Subscription is what a router asks of a driver.
type Subscription struct {
	Topic, Group string
	// Start is where a group begins that the topic has not seen before.
	Start Start
	// InFlight and Bytes bound what is received and not yet settled. The router keeps to them; a driver sizes its
	// own read-ahead (prefetch, fetch size) by them. Both are at least 1.
	InFlight, Bytes int
	// Transactional asks for a [TransactionalSource]. Only drivers with [Capabilities.Transactions] are asked.
	Transactional bool
}

// Start is where a new group begins. It does not matter to a group that already has a position.
type Start struct {
	kind int8
	at   time.Time
}

var (
	// Earliest starts with the oldest message that the broker still has for a new group. It is the zero value.
	Earliest = Start{}
	// Latest starts with what is published after the subscription.
	Latest = Start{kind: 1}
)

// StartAt starts with the first message published at t or later. A zero t is a mistake that Subscribe reports.
func StartAt(t time.Time) Start { return Start{kind: 2, at: t} }

// Time returns the point in time of a StartAt, and whether s is one.
func (s Start) Time() (time.Time, bool) { return s.at, s.kind == 2 }

func (s Start) String() string {
	switch s.kind {
	case 0:
		return "earliest"
	case 1:
		return "latest"
	default:
		return s.at.Format(time.RFC3339Nano)
	}
}

// Lane is one ownership of a share of a topic (a Kafka partition, an SQL shard, an AMQP queue) by this process.
// Lanes are the unit of order across processes: at any time one process of a group owns a lane, and equal keys are
// in equal lanes.
type Lane struct {
	ID int32
	// Epoch tells ownerships of the same lane apart. A driver never gives an epoch out twice for one lane.
	Epoch uint64
}

// LaneObserver is told of lanes coming and going. Calls come from a goroutine of the driver's other than the one in
// Receive, one at a time for each lane.
type LaneObserver interface {
	// Assigned comes before the first delivery of each of the lanes. It does not block.
	Assigned(lanes []Lane)
	// Revoking comes when lanes are to be handed to another member. No delivery of theirs may be returned by a
	// Receive that begins later. It blocks until what was being handled has ended and was settled, or ctx ends;
	// the driver then makes these settlements durable and gives the lanes up.
	Revoking(ctx context.Context, lanes []Lane)
	// Lost comes when lanes are gone already (a session expired, a connection broke). It does not block. Tokens of
	// these lanes are stale from here on.
	Lost(lanes []Lane, cause error)
}

// Token names one delivery towards the source that gave it.
type Token struct {
	// Lane and Epoch are the ownership under which the message arrived.
	Lane int32
	// Parked is set for a message that was put aside; Position is then its place among the parked ones of the lane, the
	// same in every ownership.
	Parked bool
	Epoch  uint64
	// Position is the message's place in the lane. It grows along the lane. Log-like brokers (Kafka, SQL, memory)
	// repeat it when they repeat the message; for queue-like ones (AMQP) it is the place in this ownership only.
	Position int64
}

// Delivery is one arrival of a message at a group. A driver fills Message, Token, Topic and, where it knows better,
// Attempt and FirstSeen; the router completes the rest.
type Delivery struct {
	*Message
	Token
	Topic, Group string
	// Handler is the name of the handler that is given the message.
	Handler string
	// Attempt is 1 for the first try and grows with each retry.
	Attempt int
	// FirstSeen is when the message first arrived at this group, as far as is known.
	FirstSeen time.Time
	// Failure is the history of earlier tries; nil if there were none. It is not to be changed.
	Failure *Failure
}

// Source is a subscription's stream of deliveries, pulled in batches.
type Source interface {
	// Receive waits for at least one message and fills dst from the front, at most about maxBytes by
	// [Message.Size]; one message that is larger comes alone. Messages of a lane come in the lane's order. It has
	// one caller at a time. It writes fresh Message values that the caller may keep.
	// It returns 0 and an error when ctx ends (the context's error), after Close (ErrClosed), or when the
	// source cannot go on; the router logs the error, backs off and calls again unless it is ErrClosed. An error that is not
	// retryable says that something was lost, or stays wrong until somebody changes it. 0 and no error say that the trouble is over.
	// A record that cannot be decoded is delivered raw: as payload with a synthesised id, never as an error.
	Receive(ctx context.Context, dst []Delivery, maxBytes int) (int, error)

	// Settle marks deliveries as done: the group is not given them again. Any order, any subset, concurrently. A
	// driver may make settlements durable a little later (its documented commit interval), but at the latest at
	// Revoking's return and Close, and then has a [Committer]. The error wraps ErrStale if some tokens are of an ownership that ended; the others
	// have been settled. Any other error: nothing is known, and the router calls again with the same tokens.
	Settle(ctx context.Context, tokens []Token) error

	// Close leaves the group: what was settled is made durable and the lanes are free for other members at once.
	// What was received and not settled is given back. It is idempotent, and ends a blocked Receive.
	Close(ctx context.Context) error
}

// Failure is the history of a message's failing.
type Failure struct {
	// Class is a short stable word for grouping: "permanent", "retries exhausted", "undecodable", "panic",
	// "timeout", "unknown type", "unreadable".
	Class string `json:"class"`
	// Text is the last error's text, Stack the stack of a panic.
	Text  string `json:"text"`
	Stack string `json:"stack,omitempty"`
	// Attempts is how many times a handler was called.
	Attempts int `json:"attempts"`
	// First and Last are the times of the first and the last failure.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Replays is how many times the message has been replayed from the poison queue.
	Replays int `json:"replays,omitempty"`
}
