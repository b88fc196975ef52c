package router

import (
	"context"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// task is a message in flight, from Receive to Settle. Tasks are recycled by their consumer.
type task struct {
	h     *bus.Handling // the message, and the context of its handler; replaced under the lock only
	again *bus.Handling // replaces h for the next try
	size  int
	route *Route // nil: no handler takes the message
	lane  *lane

	// Where it is.
	state   taskState
	storing storing
	outcome outcome // its next step, when its call has ended

	// Places in the scheduler; see keyTable and list.
	keyed  bool // it is in the key table
	key    string
	hash   uint64
	next   *task
	chain  *task
	behind *task
	last   *task

	// Its handling.
	settled   bool // before it was handled: at most once
	joined    bool // settled in its handler's transaction
	stale     bool // not settled there, for reasons that are not its handler's
	tries     int
	due       time.Time
	failure   *bus.Failure                       // nil: no try has failed
	outputs   []driver.Output                    // to be published with the settlement
	onSettled func(context.Context, error) error // told of the settlement; nil: nobody waits for it
	// unavailable is how long, by the handler's word, something that it needs is away.
	unavailable time.Duration
	lacks       error // why

	// Its way into the poison queue.
	entry    *driver.PoisonEntry // no handler is called any more
	keyWaits bool                // it is parked, too, and its key waits until somebody replays or drops it
	putFails int

	// Its parking.
	delayed bool // its key does not wait for it
	fetched bool // it was parked, and has come back
	beside  bool // it counts beside the in-flight bound
	unknown bool // it may be parked: a call failed, and did not say
	head    bool // no other of its key is before it
	// unparkable: the broker never parks it, so it waits in memory. bars: the later ones of its key are not parked either, unless they
	// are forced, to make room.
	unparkable, bars, forced bool
	parkOrder                uint64         // its place among those of its key that are to be parked
	place                    *parkedMessage // where it is parked, or will be
	stuck                    *stuckTasks    // with which it is tried again
}

// token names the message at the broker: as it came, or as it was parked since.
func (t *task) token() bus.Token {
	if t.place != nil && t.place.Token.Parked {
		return t.place.Token
	}
	return t.h.Delivery.Token
}
