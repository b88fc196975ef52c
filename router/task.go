package router

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
)

// task is a message in flight, from Receive to Settle. Tasks are recycled by their consumer.
type task struct {
	h     *bus.Handling // the message, and the context of its handler; replaced under the lock only
	again *bus.Handling // replaces h for the next try
	size  int
	route *Route // nil: no handler takes the message
	lane  *lane
	state taskState

	// Places in the scheduler; see keyTable and list.
	key    string
	hash   uint64
	keyed  bool
	next   *task
	chain  *task
	behind *task
	last   *task

	// The task's history, and its next step.
	tries   int
	settled bool           // before it was handled: at most once
	joined  bool           // settled in its handler's transaction
	stale   bool           // not settled there, for reasons that are not its handler's
	free    bool           // delayed: its key does not wait for it
	place   *parkedMessage // where it is parked, or will be
	fetched bool           // it was parked, and has come back
	beside  bool           // it counts beside the in-flight bound
	storing storing
	stuck   *stuckTasks // with which it is tried again
	unknown bool        // it may be parked: a call failed, and did not say
	// unparkable: the broker never parks it, so it waits in memory. bars: the later ones of its key are not parked either, unless they
	// are forced, to make room.
	unparkable, bars, forced bool
	head                     bool         // no other of its key is before it
	parkOrder                uint64       // its turn within its key
	failure                  *bus.Failure // nil: no try has failed
	due                      time.Time
	outputs                  []driver.Output                    // to be published with the settlement
	onSettled                func(context.Context, error) error // told of the settlement; nil: nobody waits for it
	entry                    *driver.PoisonEntry                // to be put into the poison queue; no handler is called any more
	blocks                   bool                               // it is parked, too, and its key waits until somebody replays or drops it
	putFails                 int
	// unavailable is how long, by the handler's word, something that it needs is away.
	unavailable time.Duration
	outcome     outcome
}

// token names the message at the broker: as it came, or as it was parked since.
func (t *task) token() bus.Token {
	if t.place != nil && t.place.Token.Parked {
		return t.place.Token
	}
	return t.h.Delivery.Token
}

// laneState is how far an ownership is in its life. It only goes on.
type laneState int8

const (
	laneOwned   laneState = iota
	laneLeaving           // being handed over: no handler starts any more
	laneLost              // nothing is settled any more either
)

// lane is one ownership of a lane by this process. Its fields are guarded by the consumer's lock.
type lane struct {
	id     bus.Lane
	ctx    context.Context // of the handlers of its messages
	cancel context.CancelCauseFunc
	// batches are the contexts of the batches in which its messages are handled.
	batches map[context.Context]context.CancelCauseFunc
	state   laneState
	// abandoned are keys with a message that was let go unsettled while the lane was going. Later
	// messages of the key must not be parked before it.
	abandoned map[string]bool
	fetches   backoff.Backoff // of its parked messages, while they cannot be fetched
	fetchFrom time.Time       // when they are tried again
	busy      int             // its tasks for which a handover waits
	idle      chan struct{}   // made by a revocation, closed when busy is 0
}

// gone says whether no handler may start any more.
func (l *lane) gone() bool { return l.state != laneOwned }

// lost says whether nothing may be settled any more either.
func (l *lane) lost() bool { return l.state == laneLost }

// countBusy counts a task that is busy now, or is not any more.
func (l *lane) countBusy(is bool) {
	if is {
		l.busy++
	} else if l.busy--; l.busy == 0 && l.idle != nil {
		close(l.idle)
		l.idle = nil
	}
}
