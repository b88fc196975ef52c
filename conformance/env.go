package conformance

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// env gives a check buses on the broker, names of its own, and a place to report to.
type env struct {
	ctx  context.Context
	open Open
	o    Options
	tag  string // makes names unique

	serial bool // the driver's own claim

	mu      sync.Mutex
	status  Status
	details []string
	cleanup []func()
}

func newEnv(ctx context.Context, open Open, o Options) *env {
	return &env{ctx: ctx, open: open, o: o, tag: bus.NewID()[24:], status: Pass}
}

// grace is the extra time of a check, and then of its cleaning up, before it is left behind.
const grace = 5 * time.Second

// do runs a check in a goroutine of its own, so that it may end itself, then cleans up. A driver
// that hangs is left behind.
func (e *env) do(run func(e *env)) {
	for _, f := range []func(){func() { run(e) }, e.clean} {
		done := make(chan struct{})
		go func() {
			defer close(done)
			defer func() {
				if p := recover(); p != nil {
					e.errorf("panic: %v", p)
				}
			}()
			f()
		}()
		select {
		case <-done:
			continue
		case <-e.ctx.Done():
		}
		select {
		case <-done:
		case <-time.After(grace):
			e.errorf("it hangs: %v after its time was up it has not ended", grace)
		}
	}
}

func (e *env) clean() {
	for len(e.cleanup) > 0 {
		f := e.cleanup[len(e.cleanup)-1]
		e.cleanup = e.cleanup[:len(e.cleanup)-1]
		f()
	}
}

func (e *env) outcome() (Status, string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.status, strings.Join(e.details, "; ")
}

// note adds to the report of the check.
func (e *env) note(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.details = append(e.details, fmt.Sprintf(format, args...))
}

// errorf notes a failure and goes on.
func (e *env) errorf(format string, args ...any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.status = Fail
	if len(e.details) < 5 {
		e.details = append(e.details, fmt.Sprintf(format, args...))
	}
}

// fatalf notes a failure and ends the check.
func (e *env) fatalf(format string, args ...any) {
	e.errorf(format, args...)
	runtime.Goexit()
}

// must ends the check if err is not nil.
func (e *env) must(err error, what string) {
	if err != nil {
		e.fatalf("%s: %v", what, err)
	}
}

// lacking ends the check because the driver does not claim this.
func (e *env) lacking(what string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.status == Pass {
		e.status = Lacking
	}
	e.details = append(e.details, what)
	e.mu.Unlock()
	defer e.mu.Lock()
	runtime.Goexit()
}

// name makes a topic's or group's name unique.
func (e *env) name(s string) string { return "conf-" + s + "-" + e.tag }

// bus opens a bus that is closed at the end.
func (e *env) bus() *bus.Bus {
	b, err := e.open(e.ctx)
	e.must(err, "open")
	e.cleanup = append(e.cleanup, func() {
		if err := b.Close(); err != nil {
			e.errorf("close of the bus: %v", err)
		}
	})
	return b
}

func (e *env) capabilities(b *bus.Bus) bus.Capabilities { return b.Driver().Capabilities() }

// running is a router at work.
type running struct {
	*router.Router
	e    *env
	stop func() error
}

// run starts r, waits until it is ready, and stops it at the end.
func (e *env) run(r *router.Router) *running {
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.ctx))
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	run := &running{Router: r, e: e}
	run.stop = sync.OnceValue(func() error {
		cancel()
		return <-over
	})
	e.cleanup = append(e.cleanup, func() {
		if err := run.stop(); err != nil {
			e.errorf("run: %v", err)
		}
	})
	e.must(r.Ready(e.ctx), "start")
	return run
}

// drain stops the router now, cleanly.
func (r *running) drain() {
	r.e.must(r.stop(), "drain")
}

func (e *env) publish(b *bus.Bus, topic string, msgs ...*bus.Message) {
	e.must(b.PublishMessages(e.ctx, topic, msgs...), "publish")
}

// wait polls until holds is true: brokers give no event for these conditions.
func (e *env) wait(what string, holds func() bool) {
	for !holds() {
		e.pause(5*time.Millisecond, what)
	}
}

// pause lets d pass; the check fails if its time is up.
func (e *env) pause(d time.Duration, what string) {
	e.pauseOr(d, func() string { return what })
}

// pauseOr is pause with a text that it makes only when the time is up.
func (e *env) pauseOr(d time.Duration, what func() string) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-e.ctx.Done():
		e.fatalf("timed out: %s", what())
	}
}

// source subscribes at the driver, without a router.
func (e *env) source(b *bus.Bus, sub bus.Subscription) (bus.Source, *lanes) {
	if sub.InFlight == 0 {
		sub.InFlight, sub.Bytes = 1000, 64<<20
	}
	o := &lanes{}
	e.serial = e.capabilities(b).Serial
	s, err := b.Driver().Subscribe(e.ctx, sub, o)
	e.must(err, "subscribe")
	e.cleanup = append(e.cleanup, func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Close(ctx); err != nil && !errors.Is(err, bus.ErrClosed) {
			e.errorf("close of the source: %v", err)
		}
	})
	return s, o
}

// receive collects n deliveries. With a serial driver it settles all but the last.
func (e *env) receive(s bus.Source, n int) []bus.Delivery {
	var all []bus.Delivery
	dst := make([]bus.Delivery, 64)
	for len(all) < n {
		got, err := s.Receive(e.ctx, dst[:min(len(dst), n-len(all))], 64<<20)
		all = append(all, dst[:got]...)
		if err != nil {
			e.fatalf("receive after %d of %d: %v", len(all), n, err)
		}
		for i := range got {
			if e.serial && len(all) < n {
				e.must(s.Settle(e.ctx, []bus.Token{dst[i].Token}), "settle")
			}
		}
	}
	return all
}

// lanes is an observer that lets every lane go at once.
type lanes struct {
	mu    sync.Mutex
	owned map[bus.Lane]bool
	// parked holds all parked messages that the driver has announced, in order.
	parked []driver.Parked
}

// Parked implements driver.ParkingObserver.
func (l *lanes) Parked(ps []driver.Parked) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parked = append(l.parked, ps...)
}

// Assigned implements bus.LaneObserver.
func (l *lanes) Assigned(ids []bus.Lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owned == nil {
		l.owned = map[bus.Lane]bool{}
	}
	for _, id := range ids {
		l.owned[id] = true
	}
}

// Revoking implements bus.LaneObserver.
func (l *lanes) Revoking(_ context.Context, ids []bus.Lane) { l.drop(ids) }

// Lost implements bus.LaneObserver.
func (l *lanes) Lost(ids []bus.Lane, _ error) { l.drop(ids) }

func (l *lanes) drop(ids []bus.Lane) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		delete(l.owned, id)
	}
}

func (l *lanes) owns(t bus.Token) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owned[bus.Lane{ID: t.Lane, Epoch: t.Epoch}]
}
