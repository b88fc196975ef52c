package router_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// TestRandom runs random programs on a broker with random faults, in virtual time, with each guarantee. Members come and go; lanes move, come back and are lost.
// Handlers fail, panic, dawdle, and fail together when lanes move; messages are delayed, cancelled, poisoned, replayed and dropped. The programs
// check what docs/guarantees.md promises, and that after each wild time nothing stands still.
//
// MILLRACE_SEEDS is the number of programs that handle at least once; a quarter as many handle exactly once, and at most once. MILLRACE_SEED is
// the first; if their number is not said it is alone, and its log is reported. The scheduler and the router's own jitter are not part of a seed:
// repeat it with -count.
//
// Old defects were put back, each alone, to see that it finds them within 1,000 programs that handle at least once:
//   - A message that was parked while its lane went had the place of its origin in its poison entry, which was written all the same
//     (afterPark, poisoner): found at seeds 327, 623, 715.
//   - Followers that had been fetched were put back into the line of a lane that was gone (parkFollowers): found at seeds 423, 484, 1000.
//   - Tries were forgotten of messages that failed, or were due, while their lane went in order (finish, Revoking, drain): found at seeds 32, 64, 72.
//   - What waited behind a message that a going lane had let go was parked before it (relieve): found at seeds 151, 506.
func TestRandom(t *testing.T) {
	first, n := uint64(1), 1000
	if testing.Short() {
		n = 200
	}
	for name, set := range map[string]func(uint64){
		"MILLRACE_SEEDS": func(v uint64) { n = int(v) },
		"MILLRACE_SEED": func(v uint64) {
			if first = v; os.Getenv("MILLRACE_SEEDS") == "" {
				n = 1
			}
		},
	} {
		if s := os.Getenv(name); s != "" {
			v, err := strconv.ParseUint(s, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			set(v)
		}
	}
	for _, guarantee := range []router.Level{router.AtLeastOnce, router.ExactlyOnce, router.AtMostOnce} {
		if guarantee != router.AtLeastOnce {
			n = max(n/4, 1)
		}
		t.Run(guarantee.String(), func(t *testing.T) { randomPrograms(t, guarantee, first, n) })
	}
}

func randomPrograms(t *testing.T, guarantee router.Level, first uint64, n int) {
	var failed atomic.Int32
	shares := min(n, 2*runtime.GOMAXPROCS(0))
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			for i := share; i < n && failed.Load() < 5; i += shares {
				seed := first + uint64(i)
				if !t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { newWorld(t, guarantee, seed).run() })
				}) {
					failed.Add(1)
				}
			}
		})
	}
}

// plan is what kind of program it is.
type plan struct {
	guarantee router.Level
	calm      bool // nothing fails but handlers, and members leave cleanly: no message is handled twice
	faulty    bool // calls of the broker fail
	batches   bool
	keyWaits  bool
	refuses   bool // messages cannot be parked; then there is one member, because they lose their place when it goes
	pauses    bool
	lazy      bool // settlements are durable when they are committed
	pressed   bool // more is published at once than may be in flight
	members   int
	messages  int
	lanes     int
	keys      int
}

// note is what is known of one message.
type note struct {
	id        string
	n         int // its number in its key
	key       string
	delayed   bool
	due       time.Time
	cancelled bool // long before it was due
	fails     int  // so often yet
	failed    int  // tries that counted
	bad       bool // fails for good until it was replayed
	started   int
	handled   int
	outputs   int // of its handler, with exactly once
	poisoned  bool
	dropped   bool
	replayed  bool
	retry     time.Time // not before
}

// world is one program.
type world struct {
	t      *testing.T
	seed   uint64
	plan   plan
	bus    *bus.Bus
	broker *shaky
	faulty atomic.Bool
	quiet  atomic.Bool // nothing takes long, and nothing fails but what handlers have to fail

	mu       sync.Mutex
	rng      *rand.Rand
	messages map[string]*note
	byKey    map[string][]*note
	running  map[string]context.Context // by key: the handler's
	missing  time.Time                  // until then what handlers need is not available, and they want to be called again:
	again    time.Duration
	history  []event
}

func newWorld(t *testing.T, guarantee router.Level, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), messages: map[string]*note{}, byKey: map[string][]*note{}, running: map[string]context.Context{}}
	w.plan = plan{
		calm: seed%4 == 0, batches: w.chance(2), keyWaits: w.chance(2), refuses: seed%4 == 1, pauses: w.chance(4),
		lazy: seed%4 == 2, pressed: w.chance(2),
		members: 2 + w.rng.IntN(2), messages: 2 + w.rng.IntN(8), lanes: 1 + w.rng.IntN(3), keys: 1 + w.rng.IntN(12),
	}
	if w.plan.pressed {
		w.plan.messages += 6 + w.rng.IntN(16)
	}
	w.plan.faulty = !w.plan.calm && w.chance(2)
	if w.plan.refuses {
		w.plan.members, w.plan.keyWaits = 1, false // and a key cannot wait for what cannot be parked
	}
	switch w.plan.guarantee = guarantee; guarantee {
	case router.ExactlyOnce:
		w.plan.lazy = false // a transaction is durable
	case router.AtMostOnce:
		w.plan.keyWaits = false // its messages are settled before they are handled
	}
	return w
}

// chance is true once in n times.
func (w *world) chance(n int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rng.IntN(n) == 0
}

func (w *world) upTo(d time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Duration(w.rng.Int64N(int64(d)))
}

// run runs the program: wild rounds, each with a quiet time after it, and then the remaining messages come to their end.
func (w *world) run() {
	w.broker = newShaky(w, w.plan.lanes)
	w.bus = bus.New(w.broker)
	defer func() {
		if w.t.Failed() {
			for _, line := range w.history {
				w.t.Log(line)
			}
		}
	}()
	q, err := poison.Open(w.t.Context(), w.bus, "g")
	if err != nil {
		w.t.Fatal(err)
	}
	members := make([]*member, w.plan.members)
	for i := range members {
		members[i] = &member{w: w, name: i}
	}
	for _, m := range members[:min(2, w.plan.members)] {
		m.join()
	}
	for range rounds {
		w.faulty.Store(w.plan.faulty)
		w.quiet.Store(false)
		var wild sync.WaitGroup
		wild.Go(w.publish)
		wild.Go(func() { w.operate(q) })
		wild.Go(w.move)
		wild.Go(func() {
			for range 50 {
				time.Sleep(101 * time.Millisecond)
				w.checkStates(members, false)
			}
		})
		for _, m := range members {
			wild.Go(m.comeAndGo)
		}
		wild.Wait()
		w.faulty.Store(false)
		w.quiet.Store(true)
		members[0].join()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		w.checkRound()
		w.checkStates(members, true)
	}
	for range 4 { // what failed for good does so once more, at its next try
		w.mu.Lock()
		for _, n := range w.messages {
			n.bad, n.replayed = false, n.replayed || n.poisoned
		}
		w.mu.Unlock()
		if _, err := q.Replay(w.t.Context(), poison.Filter{}, poison.Options{}); err != nil {
			w.t.Error(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
	}
	for _, m := range members[1:] {
		m.leave()
	}
	w.mu.Lock()
	w.messages["last"] = &note{}
	w.mu.Unlock()
	if err := w.bus.Publish(w.t.Context(), "t", "x", bus.WithID("last"), bus.WithKey("k0")); err != nil { // health tells of the last Receive
		w.t.Error(err)
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	w.checkEnd(members[0].router, q)
	members[0].leave()
	if err := w.bus.Close(); err != nil {
		w.t.Error(err)
	}
}

// rounds is how often a program is wild.
const rounds = 4

// publish publishes messages, some of them delayed, and cancels some of these.
func (w *world) publish() {
	pause := 2
	if w.plan.pressed {
		pause = 40
	}
	for range w.plan.messages {
		if w.chance(pause) {
			time.Sleep(w.upTo(time.Duration(pause) * time.Second))
		}
		w.mu.Lock()
		n := &note{key: fmt.Sprint("k", w.rng.IntN(w.plan.keys)), fails: []int{0, 0, 0, 1, 2, 3}[w.rng.IntN(6)], bad: w.rng.IntN(8) == 0}
		n.id = fmt.Sprint(n.key, "-", len(w.messages))
		n.delayed = w.rng.IntN(6) == 0
		if !n.delayed {
			n.n = len(w.byKey[n.key])
			w.byKey[n.key] = append(w.byKey[n.key], n)
		}
		w.messages[n.id] = n
		opts := []bus.PublishOption{bus.WithID(n.id), bus.WithKey(n.key)}
		if n.delayed {
			n.due = time.Now().Add(time.Hour + time.Duration(w.rng.Int64N(int64(time.Hour))))
			n.cancelled = w.rng.IntN(2) == 0
			opts = append(opts, bus.WithDeliverAt(n.due))
		}
		w.say("publish %+v", *n)
		w.mu.Unlock()
		if err := w.bus.Publish(w.t.Context(), "t", "x", opts...); err != nil {
			w.t.Error(err)
		}
		if n.cancelled {
			time.Sleep(w.upTo(time.Second))
			if err := w.bus.Publish(w.t.Context(), "t", bus.Cancellation{Key: n.key, ID: n.id}); err != nil {
				w.t.Error(err)
			}
		}
	}
}

// operate replays and drops what is poisoned.
func (w *world) operate(q *poison.Queue) {
	for range 2 {
		time.Sleep(w.upTo(4 * time.Second))
		for e, err := range q.List(w.t.Context(), poison.Filter{}) {
			if err != nil {
				w.t.Error(err)
				return
			}
			one := poison.Filter{IDs: []string{e.ID}}
			switch {
			case w.chance(4):
				w.mu.Lock()
				w.say("drop %s at %d/%d", e.Message.ID, e.Lane, e.Position)
				w.messages[e.Message.ID].dropped = true
				w.mu.Unlock()
				_, err = q.Drop(w.t.Context(), one, poison.Options{})
			case w.chance(3):
				w.mu.Lock()
				w.say("replay %s at %d/%d", e.Message.ID, e.Lane, e.Position)
				w.messages[e.Message.ID].bad, w.messages[e.Message.ID].replayed = false, true
				w.mu.Unlock()
				_, err = q.Replay(w.t.Context(), one, poison.Options{})
			}
			if err != nil {
				w.t.Error(err)
			}
		}
	}
}

// move moves lanes to other members, and others or the same ones later.
func (w *world) move() {
	for range 2 {
		time.Sleep(w.upTo(3 * time.Second))
		if !w.plan.calm && !w.plan.refuses && w.chance(4) {
			w.broker.lose()
		} else {
			w.broker.shuffle()
		}
	}
}
