package router

import (
	"context"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// TestReclaimedProbe: a worker may lose the call that is let through before it has begun it. Then
// another is let through.
func TestReclaimedProbe(t *testing.T) {
	c := newConsumer(New(nil, "g").core, bus.Subscription{}, consumerConfig{inFlight: inFlight{messages: 1, bytes: 1}}, &routeTable{})
	c.crew.watchdog = time.AfterFunc(time.Hour, func() {})
	defer c.crew.watchdog.Stop()
	slow, other := &worker{c: c, at: -1}, &worker{c: c, at: -1}
	c.crew.workers = []*worker{slow}
	c.pausing.until = time.Now()
	c.makeReady(&task{lane: &lane{ctx: context.Background()}})
	if !c.take(slow) {
		t.Fatal("no call is let through")
	}
	c.watch() // while slow has not begun
	if slow.next.Load() < 1 || !c.take(other) {
		t.Error("no other call is let through")
	}
}
