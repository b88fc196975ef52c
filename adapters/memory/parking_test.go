package memory_test

import (
	"context"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// nobody takes lanes and parked messages without a look.
type nobody struct{ driver.ParkingObserver }

func (nobody) Assigned([]bus.Lane)                  {}
func (nobody) Revoking(context.Context, []bus.Lane) {}
func (nobody) Lost([]bus.Lane, error)               {}
func (nobody) Parked([]driver.Parked)               {}

// parkOne makes a group with one message, "mine", that is parked.
func parkOne(t *testing.T) (driver.Injector, driver.ParkingSource, driver.Parking) {
	t.Helper()
	b, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	s, err := b.Driver().Subscribe(t.Context(), bus.Subscription{Topic: "t", Group: "g", InFlight: 1, Bytes: 1}, nobody{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.PublishMessages(t.Context(), "t", &bus.Message{ID: "mine", Key: "k"}); err != nil {
		t.Fatal(err)
	}
	dst := make([]bus.Delivery, 1)
	if _, err := s.Receive(t.Context(), dst, 1000); err != nil {
		t.Fatal(err)
	}
	source := s.(driver.ParkingSource)
	ps := []driver.Parking{{Delivery: dst[0], Due: time.Now()}}
	if err := source.Park(t.Context(), ps); err != nil {
		t.Fatal(err)
	}
	injector, _ := bus.As[driver.Injector](b)
	return injector, source, ps[0]
}

// stored returns the id of the message parked at a place, or "".
func stored(t *testing.T, source driver.ParkingSource, p bus.Token) string {
	t.Helper()
	dst := make([]bus.Delivery, 1)
	n, err := source.Fetch(t.Context(), []bus.Token{p}, dst)
	if err != nil {
		t.Fatal(err)
	}
	if n == 0 {
		return ""
	}
	return dst[0].ID
}

// TestInjectLeavesAnotherMessageAlone: the id, too, names the message to replace or withdraw.
func TestInjectLeavesAnotherMessageAlone(t *testing.T) {
	for _, withdraw := range []bool{true, false} {
		injector, source, p := parkOne(t)
		other := p
		other.Withdraw = withdraw
		other.Message = &bus.Message{ID: "other", Key: "k"}
		if err := injector.Inject(t.Context(), "t", "g", []driver.Parking{other}); err != nil {
			t.Fatal(err)
		}
		if got := stored(t, source, p.Token); got != "mine" {
			t.Errorf("withdraw %v: %q has the place", withdraw, got)
		}
		p.Withdraw = withdraw
		p.Message = p.Message.Clone()
		p.Message.Type = "edited"
		if err := injector.Inject(t.Context(), "t", "g", []driver.Parking{p}); err != nil {
			t.Fatal(err)
		}
		want := "mine"
		if withdraw {
			want = ""
		}
		if got := stored(t, source, p.Token); got != want {
			t.Errorf("withdraw %v: %q has the place, want %q", withdraw, got, want)
		}
	}
}

// TestWithdrawnIsNotParkedAgain: somebody may withdraw a message while its owner parks it again.
func TestWithdrawnIsNotParkedAgain(t *testing.T) {
	injector, source, p := parkOne(t)
	w := p
	w.Withdraw = true
	if err := injector.Inject(t.Context(), "t", "g", []driver.Parking{w}); err != nil {
		t.Fatal(err)
	}
	if err := source.Park(t.Context(), []driver.Parking{p}); err != nil {
		t.Fatal(err)
	}
	if got := stored(t, source, p.Token); got != "" {
		t.Errorf("%q is parked again", got)
	}
}
