package router_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// TestRandom runs random programs on a broker with random faults, in virtual time: members come and go and lose their lanes; handlers fail,
// panic, dawdle and emit; messages are delayed, cancelled, poisoned, replayed and dropped. All that docs/guarantees.md promises of it is checked.
//
// MILLRACE_SEEDS is the number of programs. MILLRACE_SEED is the first, alone if their number is not said, and has what happened reported in
// detail. The scheduler and the router's own jitter are not part of a seed: repeat it with -count.
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
	var failed atomic.Int32
	shares := min(n, 2*runtime.GOMAXPROCS(0))
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			for i := share; i < n && failed.Load() < 5; i += shares {
				seed := first + uint64(i)
				if !t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { newWorld(t, seed).run() })
				}) {
					failed.Add(1)
				}
			}
		})
	}
}

// plan is what kind of program it is.
type plan struct {
	calm     bool // nothing fails but handlers, and members leave cleanly: no message is handled twice
	batches  bool
	keyWaits bool
	refuses  bool // messages cannot be parked; then there is one member, because they lose their place when it goes
	pauses   bool
	members  int
	messages int
	keys     int
}

// note is what is known of one message.
type note struct {
	n         int // its number in its key
	key       string
	delayed   bool
	due       time.Time
	cancelled bool // long before it was due
	fails     int  // so often yet
	bad       bool // fails for good until it was replayed
	started   int
	handled   int
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
	faulty atomic.Bool
	done   atomic.Bool // all is as it will be: nothing fails any more

	mu       sync.Mutex
	rng      *rand.Rand
	messages map[string]*note
	byKey    map[string][]*note
	running  map[string]context.Context // by key: the handler's
	sources  []*shakySource
	history  []string
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 0)), messages: map[string]*note{}, byKey: map[string][]*note{}, running: map[string]context.Context{}}
	w.plan = plan{
		calm: seed%4 == 0, batches: w.chance(3), keyWaits: w.chance(2), refuses: seed%4 == 1, pauses: w.chance(4),
		members: 1 + w.rng.IntN(3), messages: 20 + w.rng.IntN(60), keys: 1 + w.rng.IntN(6),
	}
	w.faulty.Store(!w.plan.calm && w.chance(2))
	if w.plan.refuses {
		w.plan.members, w.plan.keyWaits = 0, false // but the last one; and a key cannot wait for what cannot be parked
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

func (w *world) addSource(s *shakySource) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sources = append(w.sources, s)
}

// say keeps what happened, for the report of a failure. Called with the lock held.
func (w *world) say(format string, args ...any) {
	w.history = append(w.history, time.Now().Format("02 15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// Write implements io.Writer for the router's log.
func (w *world) Write(line []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say("%s", line[:len(line)-1])
	return len(line), nil
}

func (w *world) errorf(format string, args ...any) {
	w.say("FAILED: "+format, args...)
	w.t.Errorf("seed %d, %+v: "+format, append([]any{w.seed, w.plan}, args...)...)
}

// run runs the program: a wild part, then a quiet one in which everything must come to its end.
func (w *world) run() {
	m, err := memory.Open(memory.Config{})
	if err != nil {
		w.t.Fatal(err)
	}
	w.bus = bus.New(&shaky{driver.Of(m), w})
	defer func() {
		if err := w.bus.Close(); err != nil {
			w.t.Error(err)
		}
		if w.t.Failed() {
			for _, line := range w.history {
				w.t.Log(line)
			}
		}
	}()
	var wild sync.WaitGroup
	wild.Go(w.publish)
	wild.Go(w.operate)
	var last *router.Router
	var stop func() error
	if w.plan.refuses {
		last = w.router()
		stop = run(w.t, last)
	}
	for i := range w.plan.members {
		wild.Go(func() { w.member(i) })
	}
	wild.Wait()
	w.faulty.Store(false)
	w.done.Store(true)
	if last == nil {
		last = w.router()
		stop = run(w.t, last)
	}
	q, err := poison.Open(w.t.Context(), w.bus, "g")
	if err != nil {
		w.t.Fatal(err)
	}
	for range 8 { // what failed for good does so once more, at its next try
		time.Sleep(25 * time.Hour)
		synctest.Wait()
		w.mu.Lock()
		for _, n := range w.messages {
			n.bad = false
		}
		w.mu.Unlock()
		if _, err := q.Replay(w.t.Context(), poison.Filter{}, poison.Options{}); err != nil {
			w.t.Error(err)
		}
	}
	w.mu.Lock()
	w.messages["last"] = &note{}
	w.mu.Unlock()
	if err := w.bus.Publish(w.t.Context(), "t", "x", bus.WithID("last")); err != nil { // health tells of the last Receive
		w.t.Error(err)
	}
	time.Sleep(time.Hour)
	synctest.Wait()
	w.checkEnd(last, q)
	if err := stop(); err != nil {
		w.t.Error(err)
	}
}

// checkEnd checks that nothing is missing, and nothing left.
func (w *world) checkEnd(r *router.Router, q *poison.Queue) {
	if n, err := q.Count(w.t.Context(), poison.Filter{}); n != 0 || err != nil {
		w.t.Errorf("seed %d, %+v: %d poison entries are left, %v", w.seed, w.plan, n, err)
	}
	if h := r.Health(); h.Err() != nil || h.Routes[0].InFlight != 0 {
		w.t.Errorf("seed %d, %+v: health is %+v", w.seed, w.plan, h)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, n := range w.messages {
		switch {
		case n.handled == 0 && !n.dropped && !n.cancelled:
			w.errorf("%s was lost: %+v", id, *n)
		case n.cancelled && n.handled > 0:
			w.errorf("%s was cancelled, and handled", id)
		case w.plan.calm && n.handled > 1:
			w.errorf("%s was handled %d times", id, n.handled)
		}
	}
}

// publish publishes messages, some of them delayed, and cancels some of these.
func (w *world) publish() {
	for i := range w.plan.messages {
		if w.chance(3) {
			time.Sleep(w.upTo(2 * time.Second))
		}
		w.mu.Lock()
		n := &note{key: fmt.Sprint("k", w.rng.IntN(w.plan.keys)), fails: []int{0, 0, 0, 1, 2, 3}[w.rng.IntN(6)], bad: w.rng.IntN(8) == 0}
		id := fmt.Sprint(n.key, "-", i)
		n.delayed = w.rng.IntN(6) == 0
		if !n.delayed {
			n.n = len(w.byKey[n.key])
			w.byKey[n.key] = append(w.byKey[n.key], n)
		}
		w.messages[id] = n
		opts := []bus.PublishOption{bus.WithID(id), bus.WithKey(n.key)}
		if n.delayed {
			n.due = time.Now().Add(time.Hour + time.Duration(w.rng.Int64N(int64(time.Hour))))
			n.cancelled = w.rng.IntN(2) == 0
			opts = append(opts, bus.WithDeliverAt(n.due))
		}
		w.say("publish %s: %+v", id, *n)
		w.mu.Unlock()
		if err := w.bus.Publish(w.t.Context(), "t", "x", opts...); err != nil {
			w.t.Error(err)
		}
		if n.cancelled {
			time.Sleep(w.upTo(time.Second))
			if err := w.bus.Publish(w.t.Context(), "t", bus.Cancellation{Key: n.key, ID: id}); err != nil {
				w.t.Error(err)
			}
		}
	}
}

// operate replays and drops what is poisoned.
func (w *world) operate() {
	q, err := poison.Open(w.t.Context(), w.bus, "g")
	if err != nil {
		w.t.Error(err)
		return
	}
	for range 8 {
		time.Sleep(w.upTo(10 * time.Second))
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

// member joins and leaves, and loses its session now and then.
func (w *world) member(i int) {
	for range 4 {
		time.Sleep(w.upTo(3 * time.Second))
		r := w.router()
		w.mu.Lock()
		w.say("member %d joins", i)
		w.mu.Unlock()
		stop := run(w.t, r)
		time.Sleep(w.upTo(8 * time.Second))
		if w.plan.pauses {
			r.Routes()[0].Pause()
			time.Sleep(w.upTo(4 * time.Second))
			r.Routes()[0].Resume()
			time.Sleep(w.upTo(4 * time.Second))
		}
		if !w.plan.calm && w.chance(2) {
			w.mu.Lock()
			s := w.sources[w.rng.IntN(len(w.sources))]
			w.say("a session is lost")
			w.mu.Unlock()
			s.lose(w.t.Context())
			time.Sleep(w.upTo(4 * time.Second))
		}
		w.mu.Lock()
		w.say("member %d leaves", i)
		w.mu.Unlock()
		if err := stop(); err != nil && w.plan.calm {
			w.t.Error(err)
		}
	}
}

// router makes a member's router.
func (w *world) router() *router.Router {
	inFlight := 4 + w.upTo(30)
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("MILLRACE_SEED") != "" {
		log = slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	if w.plan.refuses { // what cannot be parked stays in flight
		inFlight += 20
	}
	r := router.New(w.bus, "g", router.Logger(log), router.Workers(int(1+w.upTo(4))), router.InFlight(int(inFlight), 1<<20), router.DrainTimeout(time.Minute),
		router.Policy{KeyWaits: w.plan.keyWaits, Retry: router.Schedule{50 * time.Millisecond, 1500 * time.Millisecond, 4 * time.Second, 6 * time.Second, time.Minute}})
	if w.plan.batches {
		r.Handle("t", batchFunc(func(ctx context.Context, ms []*bus.Message) error {
			errs := make([]error, len(ms))
			for _, m := range ms {
				w.begin(ctx, m)
			}
			time.Sleep(w.took())
			if w.mishap() {
				for _, m := range ms {
					w.end(m, errors.New("mishap"))
				}
				w.perish()
			}
			for i, m := range ms {
				errs[i] = w.verdict(ctx, m)
			}
			for i, m := range ms {
				w.end(m, errs[i])
			}
			return bus.PerMessage(errs)
		}), router.Fill(4, 100*time.Millisecond))
		return r
	}
	r.HandleFunc("t", func(ctx context.Context, m *bus.Message) error {
		w.begin(ctx, m)
		time.Sleep(w.took())
		if w.mishap() {
			w.end(m, errors.New("mishap"))
			w.perish()
		}
		err := w.verdict(ctx, m)
		w.end(m, err)
		return err
	})
	return r
}

// took is how long a handler takes.
func (w *world) took() time.Duration {
	if w.done.Load() || !w.chance(4) {
		return time.Millisecond
	}
	return w.upTo(3 * time.Second)
}

func (w *world) mishap() bool { return !w.done.Load() && w.chance(25) }

// perish ends a handler without a result.
func (w *world) perish() {
	if w.chance(2) {
		panic("a handler panics")
	}
	runtime.Goexit()
}

// begin checks what must be so when a message is handled.
func (w *world) begin(ctx context.Context, m *bus.Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.messages[m.ID]
	n.started++
	w.say("begin %s", m.ID)
	if now := time.Now(); now.Before(n.due) {
		w.errorf("%s came %v early", m.ID, n.due.Sub(now))
	} else if w.plan.calm && now.Before(n.retry) && !n.replayed {
		w.errorf("%s came again %v early", m.ID, n.retry.Sub(now))
	}
	if other := w.running[n.key]; other != nil && other.Err() == nil && other != ctx {
		w.errorf("%s is handled while another one of its key is", m.ID)
	}
	w.running[n.key] = ctx
	if n.delayed || n.poisoned && !w.plan.keyWaits {
		return // its place is not promised
	}
	for _, before := range w.byKey[n.key][:n.n] {
		if before.handled == 0 && !before.dropped && (!before.poisoned || w.plan.keyWaits) {
			w.errorf("%s is handled before number %d of its key: %+v", m.ID, before.n, *before)
			return
		}
	}
}

// verdict is what a handler returns.
func (w *world) verdict(ctx context.Context, m *bus.Message) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.messages[m.ID]
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case n.bad:
		return bus.Permanent(errors.New("bad"))
	case n.fails > 0:
		n.fails--
		switch w.rng.IntN(5) {
		case 0:
			n.retry = time.Now().Add(5 * time.Second)
			return bus.RetryAfter(errLater, 5*time.Second)
		case 1:
			return bus.Unavailable(errLater, time.Second)
		}
		return errLater
	}
	return nil
}

func (w *world) end(m *bus.Message, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := w.messages[m.ID]
	delete(w.running, n.key)
	w.say("end %s: %v", m.ID, err)
	if err == nil {
		n.handled++
	}
}

// poisoned is told of each entry that was put.
func (w *world) poisoned(e driver.PoisonEntry) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say("poisoned %s at %d/%d, waits %v", e.Message.ID, e.Lane, e.Position, e.Waits)
	w.messages[e.Message.ID].poisoned = true
}

// batchFunc is a batch handler.
type batchFunc func(ctx context.Context, ms []*bus.Message) error

func (f batchFunc) Handle(ctx context.Context, m *bus.Message) error {
	return f(ctx, []*bus.Message{m})
}

func (f batchFunc) HandleBatch(ctx context.Context, ms []*bus.Message) error { return f(ctx, ms) }
