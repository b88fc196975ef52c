package driver

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// ParkingSource is a [bus.Source] that can put messages aside at the broker: durably, until they are due. A driver that has
// it says so with [bus.Capabilities.Parking]. On one that has not, a router holds messages in memory instead.
//
// What is parked belongs to the lane from which it came, and goes with it from owner to owner. After [bus.LaneObserver]'s
// Assigned and before the lane's first delivery, the driver tells of all that is parked in it ([ParkingObserver]).
// Bodies stay at the broker until they are fetched.
//
// A parked message is settled like any other, by its token: then it is gone.
type ParkingSource interface {
	bus.Source

	// Park puts deliveries aside, and settles them at their origin once they are stored: after a crash in between the
	// message may come twice, with the same id, but it is never lost, and never forgotten that it waits. It changes
	// each token to the one that the parked message has from here on. A delivery that was parked already keeps its place; its
	// Due, Attempt and Failure are replaced. Others get a position behind all that is parked in their lane, in the order
	// of the slice.
	//
	// Errors are those of Settle. Tokens of stale ones stay as they were. A *[bus.PublishError], index-aligned with ps, tells each
	// delivery's fate instead: nil is parked. An entry that is not retryable ([bus.IsRetryable]: too large, invalid) says that this delivery
	// can never be parked; the router holds it in the process, and does not ask again. Any other entry (the lane is full) is tried again
	// later, by itself. One delivery's trouble never keeps the others of a call from being parked.
	//
	// It has one caller at a time for each lane.
	Park(ctx context.Context, ps []Parking) error

	// Fetch reads parked messages into dst, which is at least as long, in the order of tokens; it returns how many.
	// Those that are not there any more, or whose token is stale, are left out. The deliveries have the tokens that were
	// asked for, and Attempt, FirstSeen, Handler and Failure as they were parked.
	//
	// A *[bus.PublishError], index-aligned with tokens, names the messages that cannot be read now, because their lane is
	// away for example. They are still parked. dst has those of the others that are there.
	Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error)
}

// ParkingObserver is a [bus.LaneObserver] that takes parked messages. The driver calls it like the other methods: not from
// the goroutine in Receive, one call at a time for each lane.
type ParkingObserver interface {
	bus.LaneObserver
	// Parked tells of messages that are parked in lanes that this process owns: of all that are there, in the order of
	// their positions, after Assigned and before the lane's first delivery; and later of those that an [Injector] has added,
	// changed or withdrawn, in the order in which that was done, and of those that an earlier owner wrote so late that the driver
	// had not seen them: a driver adopts a record that it does not know, at the record's position. It does not block.
	Parked(ps []Parked)
}

// Parking is a delivery to put aside. Message, Token, Topic, Handler, Attempt, FirstSeen and Failure are kept.
type Parking struct {
	bus.Delivery
	// Due is when it may be handled again, at the earliest. Zero is any time.
	Due time.Time
	// Free is set for a message whose key does not wait for it: a delayed one.
	Free bool
	// Withdraw is for [Injector] alone: the parked message is to be removed.
	Withdraw bool
}

// Parked is what a router knows of a parked message while the body is at the broker.
type Parked struct {
	// Token names it; Token.Parked is set.
	bus.Token
	Key string
	// Due and Free are those of [Parking], in at least milliseconds.
	Due  time.Time
	Free bool
	// Withdrawn: it is parked no more. Only Token counts.
	Withdrawn bool
}

// Injector is an optional ability of a driver, found with [bus.As]: to park messages in a group from outside. It is how
// poisoned messages are replayed. The caller need not be a member of the group, nor need anybody be.
type Injector interface {
	// Inject parks messages of one topic for a group, each in the lane of its key, and tells the lane's owner, now or when there is
	// one. Of each entry, Message, Attempt, FirstSeen, Handler, Failure, Due and Free count. An
	// entry whose Token has Parked set takes the place of the parked message with that lane, position and message ID, or, with Withdraw
	// set, removes it. It is left out if that message is gone, or if another one has the place. All others get a position behind
	// all that is parked in the lane.
	//
	// An error wraps ErrNotFound if the topic does not know the group.
	Inject(ctx context.Context, topic, group string, ps []Parking) error
}
