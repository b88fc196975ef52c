package all_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/faults"
	"github.com/millrace-go/millrace/router"
)

// outageLog is a log whose lines can be read while it is written.
type outageLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (l *outageLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

// with returns the lines that contain a text.
func (l *outageLog) with(text string) (found []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return found
}

// TestOutage cuts a router off from its broker for a while, with no messages on the way and with the
// intake paused: health says so in time, in both directions, and the log has one WARN and one INFO.
func TestOutage(t *testing.T) {
	for _, broker := range brokersBehindProxies {
		for _, paused := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, paused %v", broker.name, paused), func(t *testing.T) {
				t.Parallel()
				outageTrial(t, &broker, paused)
			})
		}
	}
}

const (
	outage = 8 * time.Second
	// seenWithin and overWithin are what docs/failure-handling.md promises.
	seenWithin = 5 * time.Second
	overWithin = 10 * time.Second
)

func outageTrial(t *testing.T, broker *brokerBehindProxy, paused bool) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	url := broker.url(t)
	p := faults.NewProxy(t, hostOf(t, url))
	tag := bus.NewID()
	topic, group := "outage-"+tag, "g-"+tag
	if broker.drop != nil {
		direct, err := bus.Open(ctx, url, bus.WithLogger(slog.New(slog.DiscardHandler)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			broker.drop(t, direct, topic, group)
			_ = direct.Close()
		})
	}
	b, err := broker.through(ctx, url, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	log := &outageLog{}
	r := router.New(b, group, router.Logger(slog.New(slog.NewTextHandler(log, nil))))
	came := make(chan struct{}, 10)
	route := r.HandleFunc(topic, func(context.Context, *bus.Message) error {
		came <- struct{}{}
		return nil
	})
	over := make(chan error, 1)
	running, stop := context.WithCancel(ctx)
	go func() { over <- r.Run(running) }()
	if err := r.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	calm := router.StateRunning
	if paused {
		route.Pause()
		calm = router.StatePaused
	}
	// becomes waits for a state, and returns how long it took.
	becomes := func(want router.State, wrong bool) time.Duration {
		t.Helper()
		begun := time.Now()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			h := route.Health()
			if h.State == want && (h.Err != nil) == wrong && (h.Lanes > 0 || wrong) {
				return time.Since(begun)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				t.Fatalf("want %s, health is %+v", want, h)
			}
		}
	}
	becomes(calm, false)
	cut := time.Now()
	p.Refuse(true)
	if took := becomes(router.StateDisconnected, true); took > seenWithin {
		t.Errorf("health says it after %v", took)
	}
	if h := route.Health(); h.Reason == "" || h.Since.Before(cut) || !bus.IsRetryable(h.Err) {
		t.Errorf("disconnected: %+v", h)
	}
	select {
	case <-time.After(time.Until(cut.Add(outage))): // the outage itself
	case <-ctx.Done():
	}
	p.Refuse(false)
	took := becomes(calm, false)
	if took > overWithin {
		t.Errorf("health is well after %v", took)
	}
	route.Resume()
	if err := b.PublishMessages(ctx, topic, &bus.Message{ID: "after", Key: "k"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-came:
	case <-ctx.Done():
		t.Error("no message comes after the outage")
	}
	stop()
	if err := <-over; err != nil {
		t.Error(err)
	}
	began, ended := log.with("level=WARN"), log.with("over: ")
	if len(began) != 1 || !strings.Contains(began[0], "disconnected") || len(ended) != 1 || !strings.Contains(ended[0], "over: disconnected") {
		t.Errorf("the log has\n%s%s", strings.Join(began, ""), strings.Join(ended, ""))
	}
	t.Logf("well %v after the end", took)
}
