package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

func TestCancellation(t *testing.T) {
	rec := &recorder{}
	b := bus.New(rec)
	h := engine.New(t.Context(), b, bus.Delivery{Message: &bus.Message{}})
	for _, p := range []bus.Publisher{b, bus.Emitter(h)} {
		for _, c := range []bus.Cancellation{{}, {ID: "1"}, {Key: "k"}} {
			err := p.Publish(t.Context(), "t", c)
			if !errors.Is(err, bus.ErrInvalid) || !bus.IsDefinite(err) || !strings.Contains(err.Error(), "publish a message that may be cancelled with a key") {
				t.Errorf("%+v: %v", c, err)
			}
		}
		if err := errors.Join(p.Publish(t.Context(), "t", bus.Cancellation{Key: "k", ID: "1"}), p.Publish(t.Context(), "t", &bus.Cancellation{Key: "k", ID: "1"})); err != nil {
			t.Error(err)
		}
	}
	if err := engine.Flush(t.Context(), h, nil); err != nil {
		t.Error(err)
	}
	if len(rec.msgs) != 4 {
		t.Errorf("%d were published, want 4", len(rec.msgs))
	}
	for _, m := range rec.msgs {
		if m.Type != bus.TypeCancellation || m.Headers.Get(bus.HeaderCancels) != "1" || m.Key != "k" || m.ID == "" || m.Payload == nil || len(m.Payload) > 0 {
			t.Errorf("%+v", m)
		}
	}
}

// A reminder is sent unless the order is paid in time.
func ExampleCancellation() {
	type Reminder struct{ Order string }
	ctx, stop := context.WithCancel(context.Background())
	b, err := bus.Open(ctx, "memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	r := router.New(b, "reminders")
	router.On(r, "reminders", func(_ context.Context, e Reminder) error {
		fmt.Println("please pay", e.Order)
		stop()
		return nil
	})
	remind := func(order string, in time.Duration) {
		err := b.Publish(ctx, "reminders", Reminder{order}, bus.WithKey(order), bus.WithID("remind-"+order), bus.WithDelay(in))
		if err != nil {
			log.Fatal(err)
		}
	}
	remind("o1", 20*time.Millisecond)
	remind("o2", 60*time.Millisecond)
	if err := b.Publish(ctx, "reminders", bus.Cancellation{Key: "o1", ID: "remind-o1"}); err != nil { // it is paid
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: please pay o2
}
