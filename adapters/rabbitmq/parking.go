package rabbitmq

import (
	"context"
	"errors"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	lot "github.com/millrace-go/millrace/internal/parking"
)

// maxParked is how many messages may be parked in a lane. There must be room for commands and later
// revisions.
const maxParked = 50_000

// parkingBounds are constants, but for tests.
type parkingBounds struct {
	// room is how many messages may be parked in a lane.
	room int
	// window is how many unsettled records the broker delivers: the most that AMQP can say. (No
	// bound is 2,000 to a quorum queue, seen on 3.10.8.)
	window int
	// refresh is for how long a record is held. The broker ends a channel over a message that is
	// not settled for its consumer_timeout, 30 minutes by default.
	refresh time.Duration
	// marker is how long an owner waits for its marker, and for anything else, before it sends
	// another.
	marker time.Duration
	// probe is how long an owner waits for its probe.
	probe time.Duration
	// tick is how often an owner looks for records to refresh, and for records that do not come.
	tick time.Duration
}

var defaultParkingBounds = parkingBounds{room: maxParked, window: 1<<16 - 1, refresh: 10 * time.Minute, marker: 5 * time.Second, probe: 5 * time.Second, tick: time.Second}

// parking is the owner's knowledge of its lane's parking queue. All parked messages are delivered
// to the owner and held unsettled, on a channel of its own; it keeps no bodies. To fetch a message,
// the owner gives it back: it comes again at once.
//
// The lane's queue decides which member is the owner. So a member that registers here owns the lane
// or has just lost it. It is active here as soon as the former owner has closed its channel. By
// then the queue holds all messages that a former owner has parked and settled at their origin: a
// marker that is sent from there on comes behind them. A record that comes behind the marker
// without being of this ownership is adopted.
//
// One goroutine reads the deliveries and never waits for the broker; another carries out the
// reader's requests. mu guards the fields; nothing is sent on the channel after end.
type parking struct {
	source     *source
	lane       bus.Lane
	of         *lane
	queue      string
	id         string // names this ownership in its markers
	bounds     parkingBounds
	ch         *amqp.Channel
	deliveries <-chan amqp.Delivery
	closed     chan struct{} // closed when the channel has ended
	cause      error         // why, set before
	ctx        context.Context
	cancel     context.CancelFunc // end calls it
	workers    sync.WaitGroup

	telling sync.Mutex // held while the observer is told

	mu        sync.Mutex
	ended     bool
	entries   map[int64]*parkedEntry
	settled   map[int64]*parkedEntry // settled records that may still come
	owed      int                    // of how many of these
	quiet     chan struct{}          // has a token when owed has become 0
	origins   map[int64]int64        // the positions of messages that are perhaps parked, by their positions in the lane
	loaded    time.Time              // when all was read
	clock     lot.Clock              // gives out positions
	open      int                    // deliveries that are not settled
	strangers map[uint64]stranger    // held, and not understood: see hold
	carried   map[string]bool        // the names of commands that were carried out, or are being so
	commands  []amqp.Delivery        // to be carried out
	copies    []parkedCopy           // to be written
	copyBytes int
	work      chan struct{} // has a token when there may be something in these
	renewing  int           // given back by refresh and not here again
	due       []int64       // to be given back by refresh
	acks      uint64        // how many were sent
	applied   uint64        // up to which of these the queue has them
	looking   bool          // lookBehind is at it
	probing   probing

	rpc sync.Mutex // held for each request on the channel that is answered
}

// stranger is a record that is held and no parked message.
type stranger struct {
	since   time.Time
	marker  bool
	copying bool
}

// parkedEntry is one parked message.
type parkedEntry struct {
	tag      uint64 // of the record that is held unsettled; 0 while none is
	revision int64  // of the last record that counted
	copied   int64  // which copy of the revision it was
	stored   int64  // the last revision that the queue is known to have
	given    int64  // the last revision that was given out
	id       uint64 // the hash of the message's id
	size     int    // of that record's body
	coming   int    // how many records are on the way
	unknown  bool   // nobody knows whether it is parked
	copying  bool   // a copy is being written
	renewing bool   // given back by refresh
	rotated  bool   // given back by rotate
	wanted   *wanted
	since    time.Time // when it was delivered
}

func newParking(l *lane, own bus.Lane, bounds parkingBounds) *parking {
	p := &parking{
		source: l.source, lane: own, of: l, queue: parkedName(l.source.group, int(l.id)), id: bus.NewID(), bounds: bounds, closed: make(chan struct{}),
		entries: map[int64]*parkedEntry{}, settled: map[int64]*parkedEntry{}, quiet: make(chan struct{}, 1), origins: map[int64]int64{},
		strangers: map[uint64]stranger{}, carried: map[string]bool{}, work: make(chan struct{}, 1),
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	return p
}

var errEnded = errors.New("the broker ended the consumer of the parking queue")

func (p *parking) wake() {
	select {
	case p.work <- struct{}{}:
	default:
	}
}
