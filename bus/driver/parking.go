package driver

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// ParkingSource is a [bus.Source] that can put messages aside at the broker, durably, until they
// are due. Its driver sets [bus.Capabilities.Parking]. Without this ability a router holds such
// messages in memory.
//
// A parked message belongs to the lane from which it came, and moves with the lane from owner to
// owner. The driver announces all messages parked in a lane by [ParkingObserver]: after
// [bus.LaneObserver]'s Assigned and before the lane's first delivery. Bodies stay at the broker
// until Fetch reads them.
//
// The router settles a parked message like any other, by its token; then the message is gone.
type ParkingSource interface {
	bus.Source

	// Park stores deliveries aside, and settles them at their origin once they are stored. After a
	// crash in between, the message may come twice, with the same id. It is never lost, and it
	// still waits until it is due.
	//
	// Park changes each token to the token of the parked message. A delivery that was parked
	// already keeps its place; its Due, Attempt and Failure are replaced. Others get a position
	// behind all messages parked in their lane, in the order of the slice.
	//
	// Errors are those of Settle. Stale tokens stay unchanged. A *[bus.PublishError], index-aligned
	// with ps, tells each delivery's fate instead:
	//
	//   - nil: the delivery is parked.
	//   - not retryable ([bus.IsRetryable]: too large, invalid): it can never be parked. The
	//     router holds it in the process and does not ask again.
	//   - any other (the lane is full): the router tries this delivery again later, by itself.
	//
	// A delivery that cannot be parked never keeps the others of a call from being parked. Park has
	// one caller at a time for each lane.
	Park(ctx context.Context, ps []Parking) error

	// Fetch reads parked messages into dst in the order of tokens, and returns their number. dst is
	// at least as long as tokens. Fetch leaves out messages that are gone and stale tokens. The
	// deliveries have the requested tokens, and the parked Attempt, FirstSeen, Handler and Failure.
	//
	// A *[bus.PublishError], index-aligned with tokens, names the messages that cannot be read now,
	// for example because their lane is away. They are still parked. dst holds the other messages
	// that exist.
	Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error)
}

// ParkingObserver is a [bus.LaneObserver] that takes parked messages. The driver calls it like the
// other methods: never from the goroutine in Receive, one call at a time for each lane.
type ParkingObserver interface {
	bus.LaneObserver
	// Parked announces messages that are parked in lanes of this process. It does not block. The
	// driver calls it
	//
	//   - after Assigned and before the lane's first delivery, with all parked messages, in the
	//     order of their positions;
	//   - later, with the messages that an [Injector] has added, changed or withdrawn, in the
	//     order of these changes;
	//   - with messages that an earlier owner wrote so late that the driver had not seen them.
	//     A driver adopts an unknown record at the record's position.
	Parked(ps []Parked)
}

// Parking is a delivery to put aside. Park keeps Message, Token, Topic, Handler, Attempt, FirstSeen
// and Failure.
type Parking struct {
	bus.Delivery
	// Due is the earliest time at which the message may be handled again. Zero: at any time.
	Due time.Time
	// Delayed marks a delayed message: its key does not wait for it.
	Delayed bool
	// Withdraw removes the parked message. Only [Injector] reads it.
	Withdraw bool
}

// Parked describes a parked message to a router while the body is at the broker.
type Parked struct {
	// Token names it; Token.Parked is set.
	bus.Token
	Key string
	// Due and Delayed are those of [Parking]. Due has at least millisecond precision.
	Due     time.Time
	Delayed bool
	// Withdrawn: the message is not parked any more. Only Token counts.
	Withdrawn bool
}

// Injector is an optional ability of a driver, found with [bus.As]: it parks messages in a group
// from outside. Replays of poisoned messages use it. The caller need not be a member of the group,
// and the group may have no members.
type Injector interface {
	// Inject parks messages of one topic for a group, each in the lane of its key. It tells the
	// lane's owner, now or when there is an owner. Of each entry, Message, Attempt, FirstSeen,
	// Handler, Failure, Due and Delayed count.
	//
	// An entry with Token.Parked replaces the parked message with that lane, position and message
	// ID. With Withdraw it removes that message. Inject leaves the entry out if that message is
	// gone or another message has its position. All other entries get a position behind all
	// messages parked in the lane.
	//
	// An error wraps ErrNotFound if the topic does not know the group.
	Inject(ctx context.Context, topic, group string, ps []Parking) error
}
