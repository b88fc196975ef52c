package bus

import (
	"context"
	"time"
)

// Driver connects a [Bus] to one broker. Applications call the Bus and never a Driver. Authors of
// drivers find the whole contract, with the poison store and the optional abilities, in package
// bus/driver.
//
// A driver owns mechanism: lanes, ownership and its epochs, positions, repair of connections. It
// retries broken connections in the background with jittered back-off, while callers wait within
// their context. The router owns policy: order by key, retries, bounds, draining. The policy is the
// same on every broker.
//
// All methods are safe for concurrent use. After Close they fail with [ErrClosed].
type Driver interface {
	// Publish appends msgs to topic in their order, and returns nil once all are durable. It must
	// not retain msgs or change them; it may retain the memory of payloads and headers. The bus has
	// validated and completed the messages.
	//
	// A failure is a *PublishError, index-aligned with msgs. Each entry is an *Error, which says
	// whether the message is definitely not published.
	Publish(ctx context.Context, topic string, msgs []*Message) error

	// Subscribe makes this process a member of the group on the topic. If the broker cannot honour
	// a part of s, Subscribe returns an error that wraps ErrUnsupported; no later call does. It may
	// return before any lane is assigned. ctx bounds the call; the source lives until its Close or
	// the driver's.
	Subscribe(ctx context.Context, s Subscription, o LaneObserver) (Source, error)

	Capabilities() Capabilities

	// Close ends everything, sources included, within ctx. It is idempotent.
	Close(ctx context.Context) error
}

// Capabilities states a broker's abilities beyond the contract's musts. Conformance checks each
// claim.
type Capabilities struct {
	// Broker is the name in errors, logs and reports, such as "kafka".
	Broker string
	// Durable: messages and a group's position outlive the process and the broker's restart.
	Durable bool
	// Replay: a late group receives the messages published before it, as far as retention goes.
	Replay bool
	// StartAt: a new group may start at a point in time.
	StartAt bool
	// Parking: the broker can store messages aside until they are due ([ParkingSource],
	// [Injector]). This makes long delays durable.
	Parking bool
	// Transactions: one transaction can hold the settlement and the handler's emitted messages
	// ([TransactionalSource]).
	Transactions bool
	// Serial: a lane may give its next message only when the previous one is settled. Then at most
	// one handler runs per lane, and a message that waits for its retry holds up its lane.
	Serial bool
	// MaxMessage is the largest [Message.Size] that the broker accepts, in bytes. 0: the driver
	// knows no limit.
	MaxMessage int
}

// Lag is how far a group is behind on a topic.
type Lag struct {
	// Messages is how many messages of the topic the group has not finished. Parked messages do not
	// count: they have left the topic.
	Messages int64 `json:"messages"`
	// Estimated says that the broker cannot tell the number, or not quickly enough. The adapter's
	// documentation says how far Messages may be off.
	Estimated bool `json:"estimated,omitempty"`
	// Oldest is when the oldest of the messages was published. It is zero if there is none, or if
	// the broker does not tell.
	Oldest time.Time `json:"oldest,omitzero"`
}

// Subscription is a router's request to a driver.
type Subscription struct {
	Topic, Group string
	// Start is where a group begins on a topic that is new to it.
	Start Start
	// InFlight (messages) and Bytes bound the messages received and not yet settled. The router
	// keeps to them; a driver sizes its read-ahead (prefetch, fetch size) by them. Both are at
	// least 1.
	InFlight, Bytes int
	// Transactional asks for a [TransactionalSource]. The router sets it only for drivers with
	// [Capabilities.Transactions].
	Transactional bool
}

// Start is where a new group begins. A group that already has a position ignores it.
type Start struct {
	kind int8
	at   time.Time
}

var (
	// Earliest starts with the oldest message that the broker still has. It is the zero value.
	Earliest = Start{}
	// Latest starts with the first message published after the subscription.
	Latest = Start{kind: 1}
)

// StartAt starts with the first message published at t or later. Subscribe reports a zero t as a
// mistake.
func StartAt(t time.Time) Start { return Start{kind: 2, at: t} }

// Time returns the time of a StartAt; ok is false for any other Start.
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

// Lane is one ownership of a share of a topic (a Kafka partition, an SQL shard, an AMQP queue) by
// this process. Lanes are the unit of order across processes. At any time one process of a group
// owns a lane; equal keys are in the same lane.
type Lane struct {
	ID int32
	// Epoch tells ownerships of the same lane apart. A driver never reuses an epoch of a lane.
	Epoch uint64
}

// LaneObserver learns when lanes come and go. The driver calls it from a goroutine of its own,
// never from the goroutine in Receive. It makes one call at a time for each lane.
type LaneObserver interface {
	// Assigned comes before the first delivery of each of the lanes. It does not block.
	Assigned(lanes []Lane)
	// Revoking comes before lanes move to another member. No Receive that begins later may return a
	// delivery of these lanes. Revoking blocks until the running handlers of these lanes have ended
	// and their messages are settled, or until ctx ends. The driver then makes these settlements
	// durable and gives the lanes up.
	Revoking(ctx context.Context, lanes []Lane)
	// Lost comes when lanes are gone already (a session expired, a connection broke). It does not
	// block. Tokens of these lanes are stale from then on.
	Lost(lanes []Lane, cause error)
}

// Token names one delivery to the source that returned it.
type Token struct {
	// Lane and Epoch are the ownership under which the message arrived.
	Lane int32
	// Parked is set for a message that was put aside. Position is then its place among the parked
	// messages of the lane, the same in every ownership.
	Parked bool
	Epoch  uint64
	// Position is the message's place in the lane. It grows along the lane. Log-like brokers
	// (Kafka, SQL, memory) repeat the position when they repeat the message. For queue-like brokers
	// (AMQP) it is the place in this ownership only.
	Position int64
}

// Delivery is one arrival of a message at a group. A driver fills Message, Token and Topic, and
// also Attempt and FirstSeen if it knows them. The router completes the rest.
type Delivery struct {
	*Message
	Token
	Topic, Group string
	// Handler is the name of the handler that receives the message.
	Handler string
	// Attempt is 1 for the first try and grows with each retry.
	Attempt int
	// FirstSeen is the time when the message first arrived at this group, as far as known.
	FirstSeen time.Time
	// Failure is the history of earlier tries, or nil. Treat it as read-only.
	Failure *Failure
}

// Source is a subscription's stream of deliveries, pulled in batches.
type Source interface {
	// Receive waits for at least one message and fills dst from the front. The sum of their
	// [Message.Size] is at most about maxBytes; a larger message comes alone. Messages of a lane
	// come in the lane's order. Only one goroutine may call Receive at a time. It writes fresh
	// Message values, which the caller may keep.
	//
	// It returns 0 and an error in three cases: ctx ends (the context's error), after Close
	// (ErrClosed), or the source cannot go on. In the last case the router logs the error, backs
	// off and calls again. An error that is not retryable says that something was lost. 0 without an
	// error says that the source goes on.
	//
	// A record that cannot be decoded is delivered raw, as payload with a synthesised id; it is
	// never an error.
	Receive(ctx context.Context, dst []Delivery, maxBytes int) (int, error)

	// Settle marks deliveries as done: the group does not receive them again. It takes any subset
	// in any order, and concurrent calls. A driver may make settlements durable a little later (its
	// documented commit interval); then it has a [Committer]. They are durable at the latest when
	// Revoking or Close returns.
	//
	// The error wraps ErrStale if the ownership of some tokens has ended; the others are settled.
	// After any other error the outcome is unknown, and the router calls again with the same
	// tokens.
	Settle(ctx context.Context, tokens []Token) error

	// Close leaves the group: it makes settlements durable and frees the lanes for other members at
	// once. It gives back the messages received and not settled. It is idempotent, and ends a
	// blocked Receive.
	Close(ctx context.Context) error
}

// Failure is the history of a message's failed tries.
type Failure struct {
	// Class is a short stable word for grouping: "permanent", "retries exhausted", "undecodable",
	// "panic", "timeout", "unknown type", "unreadable".
	Class string `json:"class"`
	// Text is the last error's text. Stack is the stack of a panic.
	Text  string `json:"text"`
	Stack string `json:"stack,omitempty"`
	// Attempts counts the calls of a handler.
	Attempts int `json:"attempts"`
	// First and Last are the times of the first and the last failure.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Replays counts the message's replays from the poison queue.
	Replays int `json:"replays,omitempty"`
}
