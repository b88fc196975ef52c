package router_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// fakeLot is a fake at which messages can be parked.
type fakeLot struct {
	*fake
	park func(ps []driver.Parking) error
}

func (f *fakeLot) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	if _, err := f.fake.Subscribe(ctx, s, o); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *fakeLot) Park(_ context.Context, ps []driver.Parking) error { return f.park(ps) }

func (f *fakeLot) Fetch(context.Context, []bus.Token, []bus.Delivery) (int, error) { return 0, nil }

// TestLaneGoesWhileWhatIsReadyIsParked: a message is to be tried again, while the broker still
// parks it, and is given back, because its lane goes.
func TestLaneGoesWhileWhatIsReadyIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release, gate := make(chan struct{}), make(chan struct{})
		parks := 0
		f := &fakeLot{fake: newFake()}
		f.park = func(ps []driver.Parking) error {
			if parks++; parks == 1 {
				errs := make([]error, len(ps))
				for i := range errs {
					errs[i] = &bus.Error{Op: "park", Broker: "fake", Err: errLater, Definite: true, Retryable: true}
				}
				return &bus.PublishError{Errs: errs}
			}
			<-gate
			return bus.ErrStale
		}
		var positions []int64
		r := router.New(bus.New(f), "g", router.Logger(testlog.New(t, "handler failed", "parking failed")), router.Workers(2), router.InFlight(4, 1<<20),
			router.Policy{Retry: router.Schedule{900 * time.Millisecond}})
		route := r.HandleFunc("t", func(ctx context.Context, _ *bus.Message) error {
			d := bus.DeliveryFrom(ctx)
			if d.Epoch == 1 {
				<-release
				return errLater
			}
			positions = append(positions, d.Position)
			return nil
		})
		run(t, r)
		deliver := func(epoch uint64) {
			f.observer.Assigned([]bus.Lane{{ID: 0, Epoch: epoch}})
			for i := range 4 {
				f.send(0, epoch, int64(i), "k")
			}
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
		}
		deliver(1)
		route.Pause()
		close(release)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if parks != 2 {
			t.Fatalf("parking was called %d times, want 2", parks)
		}
		f.observer.Lost([]bus.Lane{{ID: 0, Epoch: 1}}, errLater)
		route.Resume()
		synctest.Wait()
		close(gate)
		synctest.Wait()
		deliver(2)
		if want := []int64{0, 1, 2, 3}; !slices.Equal(positions, want) {
			t.Errorf("the next owner handled %v, want %v", positions, want)
		}
		if n := route.Health().InFlight; n != 0 {
			t.Errorf("%d are in flight in the end", n)
		}
	})
}
