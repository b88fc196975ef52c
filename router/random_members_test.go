package router_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// member is one process of the group, or is not there.
type member struct {
	w      *world
	name   int
	router *router.Router
	stop   func() error
}

func (m *member) join() {
	if m.stop == nil {
		m.w.note("member %d joins", m.name)
		r := m.w.router()
		stop := run(m.w.t, r)
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		m.router, m.stop = r, stop
	}
}

func (m *member) leave() {
	if m.stop == nil {
		return
	}
	m.w.note("member %d leaves", m.name)
	if err := m.stop(); err != nil && m.w.plan.calm {
		m.w.t.Error(err)
	}
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.stop = nil
}

// comeAndGo is a member's life in a round.
func (m *member) comeAndGo() {
	w := m.w
	time.Sleep(w.upTo(4 * time.Second))
	switch {
	case w.chance(2):
	case m.stop == nil:
		m.join()
	case !w.plan.refuses:
		m.leave()
		time.Sleep(w.upTo(2 * time.Second))
		if w.chance(2) {
			m.join()
		}
	}
	if w.plan.pauses && m.stop != nil {
		m.router.Routes()[0].Pause()
		time.Sleep(w.upTo(4 * time.Second))
		m.router.Routes()[0].Resume()
	}
}

// router makes a member's router.
func (w *world) router() *router.Router {
	inFlight := 4 + w.upTo(30)
	if w.plan.pressed {
		inFlight = 4 + w.upTo(8)
	}
	log := slog.New(surprises{w})
	if os.Getenv("MILLRACE_SEED") != "" && os.Getenv("MILLRACE_SEEDS") == "" {
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
		}), router.Fill(int(2+w.upTo(2)), 100*time.Millisecond), router.Guarantee(w.plan.guarantee))
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
	}, router.Guarantee(w.plan.guarantee))
	return r
}

// took is how long a handler takes.
func (w *world) took() time.Duration {
	seldom := 4
	if w.plan.pressed {
		seldom = 2
	}
	if w.quiet.Load() || !w.chance(seldom) {
		return time.Millisecond
	}
	return w.upTo(3 * time.Second)
}

// outage makes what handlers need not available for a moment.
func (w *world) outage() {
	d, again := w.upTo(2*time.Second), 200*time.Millisecond
	if w.chance(2) {
		again = 2 * time.Second
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.missing, w.again = time.Now().Add(d), again
}

func (w *world) mishap() bool { return !w.quiet.Load() && w.chance(25) }

// perish ends a handler without a result.
func (w *world) perish() {
	if w.chance(2) {
		panic("a handler panics")
	}
	runtime.Goexit()
}

// batchFunc is a batch handler.
type batchFunc func(ctx context.Context, ms []*bus.Message) error

func (f batchFunc) Handle(ctx context.Context, m *bus.Message) error {
	return f(ctx, []*bus.Message{m})
}

func (f batchFunc) HandleBatch(ctx context.Context, ms []*bus.Message) error { return f(ctx, ms) }
