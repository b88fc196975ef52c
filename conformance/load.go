package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/pairwise"
	"github.com/millrace-go/millrace/router"
)

// While some keys wait for an hour, a hundred thousand messages of a thousand others pass at their
// usual rate. They pass in order and without taking memory.
var loadChecks = []check{
	{"load/a-key-waits", loadKeyWaits},
	{"load/a-key-waits-elsewhere", loadKeyWaitsElsewhere},
	{"load/many-keys-wait", loadManyKeysWait},
}

// The rate is measured in pairs of rounds, one while keys wait and one while none does, because
// other programs use the machine, too.
const (
	loadMessages = 5000 // of a round
	loadKeys     = 1000
	// loadPairs makes a hundred thousand messages. There are more if the rates do not agree,
	// because the machine is busy. There are fewer if a slow machine needs more than a quarter of
	// the check's time.
	loadPairs = 20
	// loadShare is the least share of the usual rate.
	loadShare = 0.8
	// loadMemory is the memory in bytes that waiting keys may add.
	loadMemory = 8 << 20
	// loadFollowers wait behind each message that waits alone.
	loadFollowers = 20
)

// loadKeyWaits: one key waits.
func loadKeyWaits(e *env) {
	usual, waiting := e.loads()
	waiting.block(1, loadFollowers)
	waiting.compare(usual)
}

// loadKeyWaitsElsewhere: another member made the key wait.
func loadKeyWaitsElsewhere(e *env) {
	usual, waiting := e.loads()
	waiting.block(1, loadFollowers)
	next := waiting.bus
	if e.capabilities(next).Durable {
		next = e.bus()
	}
	for _, l := range []*load{usual, waiting} {
		l.run.drain()
		l.start(next)
	}
	waiting.compare(usual)
}

// loadManyKeysWait: ten thousand keys wait at once.
func loadManyKeysWait(e *env) {
	usual, waiting := e.loads()
	waiting.block(10_000, 0)
	waiting.compare(usual)
}

// load is a topic with a handler.
type load struct {
	*ledger
	topic, group string
	bus          *bus.Bus
	run          *running
	grown        int64 // memory in use, over all rounds

	blocked struct {
		sync.Mutex
		keys map[string]bool // keys with a failed message
	}
}

// loads returns one topic where nothing waits, and one where keys will wait.
func (e *env) loads() (usual, waiting *load) {
	b := e.bus()
	e.parks(b)
	both := [2]*load{}
	for i, name := range []string{"usual", "waiting"} {
		both[i] = &load{ledger: e.ledger(), topic: e.name(name), group: e.name("g-" + name)}
		both[i].blocked.keys = map[string]bool{}
		both[i].start(b)
	}
	return both[0], both[1]
}

// start begins to consume, as a member of its own.
func (l *load) start(b *bus.Bus) {
	l.bus = b
	r := router.New(b, l.group)
	passes := l.handler(nil)
	r.HandleFunc(l.topic, func(ctx context.Context, m *bus.Message) error {
		if !strings.HasPrefix(m.Key, "waits-") {
			return passes(ctx, m)
		}
		l.blocked.Lock()
		defer l.blocked.Unlock()
		if l.blocked.keys[m.Key] {
			l.e.errorf("%s was handled, although its key waits", m.ID)
		}
		l.blocked.keys[m.Key] = true
		return bus.RetryAfter(errors.New("in an hour"), time.Hour)
	})
	l.run = l.e.run(r)
	l.round()
}

// block makes so many keys wait, with so many messages behind each key's failed one.
func (l *load) block(keys, behind int) {
	for i := range 1 + behind {
		var msgs []*bus.Message
		for k := range keys {
			msgs = append(msgs, &bus.Message{ID: fmt.Sprintf("waits-%d/%d", k, i), Key: fmt.Sprint("waits-", k)})
		}
		for some := range slices.Chunk(msgs, 1000) {
			l.e.publish(l.bus, l.topic, some...)
		}
		l.e.wait("messages to fail that are to wait", func() bool {
			l.blocked.Lock()
			defer l.blocked.Unlock()
			return len(l.blocked.keys) == keys
		})
	}
	l.nothingInFlight()
}

func (l *load) nothingInFlight() {
	l.e.wait("nothing to be in flight, though keys wait", func() bool { return l.run.Health().Routes[0].InFlight == 0 })
}

// round returns the time in which a round of messages is handled.
func (l *load) round() time.Duration {
	used := heap()
	start := time.Now()
	for range loadMessages / 1000 {
		l.e.publish(l.bus, l.topic, l.make(1000, loadKeys)...)
	}
	l.complete()
	took := time.Since(start)
	l.grown += max(heap()-used, 0) // negative: memory of an earlier check was freed meanwhile
	return took
}

// compare demands the rate of another load, without waiting keys, and no more memory.
func (l *load) compare(usual *load) {
	until, _ := l.e.ctx.Deadline()
	got := pairwise.Compare(pairwise.Limits{Enough: loadPairs, Slow: time.Until(until) / 4, Share: loadShare}, usual.round, l.round)
	l.nothingInFlight()
	usual.exact()
	l.exact()
	grown := l.grown - usual.grown
	l.e.note("%d messages at %.0f %% of the usual %.0f/s; %d KiB more in use", got.Pairs*loadMessages, 100*got.Share, loadMessages/got.Usual.Seconds(), grown>>10)
	if got.Share < loadShare {
		l.e.errorf("keys that wait slow the others down")
	}
	if grown > loadMemory {
		l.e.errorf("memory grows while keys wait")
	}
}

// heap is the memory in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
