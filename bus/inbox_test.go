package bus_test

import (
	"context"
	"encoding/json"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// held has each Publish wait for its turn: before the message is published, and after that.
type held struct {
	driver.Driver
	before, after []chan struct{} // by the number of the call
	calls         int
}

func (d *held) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	i := d.calls
	d.calls++
	<-d.before[i]
	err := d.Driver.Publish(ctx, topic, msgs)
	<-d.after[i]
	return err
}

// A request that leaves does not take the registration of the next one with its id along.
func TestRequestsWithOneIDInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inner := answering(t, func(context.Context, QuoteRequest) (Quote, error) { return Quote{7}, nil })
		open, release, publish := make(chan struct{}), make(chan struct{}), make(chan struct{})
		close(open)
		d := &held{Driver: driver.Of(inner), before: []chan struct{}{open, publish}, after: []chan struct{}{release, open}}
		b := bus.New(d, bus.WithLogger(testlog.New(t)))
		over := make(chan error, 2)
		request := func() {
			_, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{}, bus.WithID("r"))
			over <- err
		}
		go request()
		synctest.Wait() // it is answered, and its Publish has not returned
		go request()
		synctest.Wait() // it is registered
		close(release)
		if err := <-over; err != nil {
			t.Error(err)
		}
		close(publish)
		if err := <-over; err != nil {
			t.Error(err)
		}
	})
}

// losing is a request that makes the driver close the inbox while it is encoded.
type losing struct{ lost chan struct{} }

func (l losing) MarshalJSON() ([]byte, error) {
	close(l.lost)
	time.Sleep(time.Second) // the inbox knows
	return json.Marshal(QuoteRequest{})
}

// A request does not wait for an inbox that was lost before it was registered.
func TestInboxThatIsLostBeforeTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &closing{Driver: driver.Of(bustest.New(t)), lost: make(chan struct{})}
		b := bus.New(d, bus.WithLogger(testlog.New(t, "closed the inbox")))
		begun := time.Now()
		if _, err := bus.Request[Quote](t.Context(), b, "quotes", losing{d.lost}); err == nil || time.Since(begun) > 2*time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		answers := bus.New(d.Driver)
		r := router.New(answers, "pricing")
		r.Handle("quotes", bus.Reply(func(context.Context, QuoteRequest) (Quote, error) { return Quote{7}, nil }))
		bustest.Run(t, r)
		if q, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{}); err != nil || q.Cents != 7 {
			t.Errorf("%v %v", q, err)
		}
	})
}
