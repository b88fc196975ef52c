package conformance

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

var truthChecks = []check{
	{"truth/states", truthStates},
	{"truth/counts", truthCounts},
	{"truth/lag", truthLag},
	{"truth/conditions", truthConditions},
}

// truthStates: health names the state of a subscription from the start to the end.
func truthStates(e *env) {
	b := e.bus()
	topic, group := e.name("states"), e.name("g")
	var mu sync.Mutex
	away := true
	begun, release := make(chan struct{}), make(chan struct{})
	r := router.New(b, group)
	route := r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case m.ID == "last":
			close(begun)
			<-release
		case away:
			return bus.Unavailable(errors.New("the payment API is down"), 100*time.Millisecond)
		}
		return nil
	})
	if h := route.Health(); h.State != router.StateNew {
		e.errorf("before Run it is %s", h.State)
	}
	run := e.run(r)
	becomes := func(want router.State) {
		e.pauseUntil(func() (bool, string) {
			h := route.Health()
			return h.State == want, fmt.Sprintf("the state %q; it is %q since %v: %s", want, h.State, h.Since, h.Reason)
		})
		if h := route.Health(); h.State == want && (h.Since.IsZero() || time.Since(h.Since) > time.Minute) {
			e.errorf("%s since %v", h.State, h.Since)
		}
	}
	becomes(router.StateRunning)
	route.Pause()
	becomes(router.StatePaused)
	route.Resume()
	becomes(router.StateRunning)
	e.publish(b, topic, &bus.Message{ID: "first", Key: "k"})
	becomes(router.StateSuspended)
	mu.Lock()
	away = false
	mu.Unlock()
	becomes(router.StateRunning)
	if err := r.Health().Err(); err != nil {
		e.errorf("nothing is wrong, and health says: %v", err)
	}
	e.publish(b, topic, &bus.Message{ID: "last", Key: "k"})
	select {
	case <-begun:
	case <-e.ctx.Done():
		e.fatalf("the last message did not come")
	}
	stopped := make(chan error, 1)
	go func() { stopped <- run.stop() }()
	becomes(router.StateDraining)
	close(release)
	becomes(router.StateStopped)
	e.must(<-stopped, "drain")
}

// truthCounts: health counts what waits, and says when the next of it is due.
func truthCounts(e *env) {
	b := e.bus()
	if !e.capabilities(b).Parking {
		e.lacking("messages cannot be parked")
	}
	topic, group := e.name("counts"), e.name("g")
	const parked, delayed = 5, 3
	r := router.New(b, group, router.Policy{Retry: router.Schedule{time.Hour}})
	route := r.HandleFunc(topic, func(context.Context, *bus.Message) error { return errors.New("later") })
	run := e.run(r)
	begun := time.Now()
	for i := range parked {
		e.publish(b, topic, &bus.Message{ID: fmt.Sprint("parked-", i), Key: fmt.Sprint("p", i%2)})
	}
	for i := range delayed {
		m := &bus.Message{ID: fmt.Sprint("delayed-", i), Key: fmt.Sprint("d", i)}
		e.must(b.Publish(e.ctx, topic, m, bus.WithDelay(24*time.Hour)), "publish")
	}
	counted := func(who string, health func() router.RouteHealth) {
		e.pauseUntil(func() (bool, string) {
			h := health()
			ok := h.Parked == parked && h.Delayed == delayed && h.InFlight == 0 && h.Held == 0 &&
				h.NextDue.After(begun.Add(time.Hour-time.Second)) && h.NextDue.Before(time.Now().Add(67*time.Minute))
			return ok, fmt.Sprintf("%s to count %d parked and %d delayed messages, due in an hour; it has %+v", who, parked, delayed, h)
		})
	}
	counted("the first member", route.Health)
	run.drain()
	next := router.New(b, group)
	heir := next.HandleFunc(topic, func(context.Context, *bus.Message) error { return nil })
	e.run(next)
	counted("the next member", heir.Health)
}

// truthLag: the lag is right, with the age of the oldest message where the broker tells it.
func truthLag(e *env) {
	b := e.bus()
	lagger, ok := bus.As[driver.Lagger](b)
	if !ok {
		e.lacking("the driver does not tell the lag")
	}
	topic, group := e.name("lag"), e.name("g")
	if _, err := lagger.Lag(e.ctx, topic, group); !errors.Is(err, bus.ErrNotFound) {
		e.errorf("the lag of an unknown group: %v", err)
	}
	handled := make(chan struct{}, 1000)
	handle := func(context.Context, *bus.Message) error {
		handled <- struct{}{}
		return nil
	}
	r := router.New(b, group)
	r.HandleFunc(topic, handle)
	run := e.run(r)
	e.publish(b, topic, &bus.Message{ID: "first"})
	select {
	case <-handled: // so that the group has a position on every broker
	case <-e.ctx.Done():
		e.fatalf("the first message did not come")
	}
	behind := func(want int64) (lag bus.Lag) {
		e.pauseUntil(func() (bool, string) {
			var err error
			lag, err = lagger.Lag(e.ctx, topic, group)
			return err == nil && lag.Messages == want && !lag.Estimated, fmt.Sprintf("a lag of %d; it is %+v, %v", want, lag, err)
		})
		return lag
	}
	behind(0)
	run.drain()
	const n = 300
	begun := time.Now()
	e.publish(b, topic, e.ledger().make(n, 50)...)
	// Clocks of the broker and of this process differ.
	if lag := behind(n); !lag.Oldest.IsZero() && (lag.Oldest.Before(begun.Add(-time.Minute)) || lag.Oldest.After(time.Now().Add(time.Minute))) {
		e.errorf("the oldest message is of %v, and was published at %v", lag.Oldest, begun)
	}
	r = router.New(b, group)
	r.HandleFunc(topic, handle)
	e.run(r)
	e.pauseUntil(func() (bool, string) {
		h, err := r.HealthWithLag(e.ctx)
		lag := h.Routes[0].Lag
		return err == nil && lag.Messages == 0 && lag.Oldest.IsZero(), fmt.Sprintf("no lag; it is %+v, %v", lag, err)
	})
}

// truthConditions: a subscription that works has no condition, whatever was told before.
func truthConditions(e *env) {
	b := e.bus()
	topic, group := e.name("conditions"), e.name("g")
	l := e.ledger()
	r := router.New(b, group)
	route := r.HandleFunc(topic, l.handler(nil))
	e.run(r)
	e.publish(b, topic, l.make(200, 20)...)
	l.complete()
	l.exact()
	e.pauseUntil(func() (bool, string) {
		h := route.Health()
		return h.State == router.StateRunning && h.Err == nil && h.Lanes > 0, fmt.Sprintf("a subscription that works: %+v", h)
	})
}

// pauseUntil polls until holds; the check fails with holds' text if its time is up.
func (e *env) pauseUntil(holds func() (bool, string)) {
	for {
		ok, what := holds()
		if ok {
			return
		}
		e.pauseOr(10*time.Millisecond, func() string { return what })
	}
}
