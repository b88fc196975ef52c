package outbox_test

import (
	"context"
	"database/sql"
	"slices"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// TestLongTransaction: a transaction that has nothing to do with the outbox stays open while many
// messages go through. The time from a commit to the handler stays the same, although the database
// keeps the deleted rows meanwhile.
func TestLongTransaction(t *testing.T) {
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL} {
		t.Run(d.String(), func(t *testing.T) { longTransaction(t, newStore(t, d)) })
	}
}

func longTransaction(t *testing.T, s *store) {
	b := openBus(t, "memory:")
	came := make(chan time.Time, 1000)
	r := router.New(b, "g")
	router.On(r, "probes", func(context.Context, placed) error { came <- time.Now(); return nil })
	r.HandleFunc("others", func(context.Context, *bus.Message) error { came <- time.Now(); return nil })
	bustest.Run(t, r)
	s.runRelay(t, b, outbox.RelayConfig{})
	through := func(n int) {
		for ; n > 0; n -= 500 {
			err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sql.Tx, p bus.Publisher) error {
				return p.PublishMessages(t.Context(), "others", benchMessages(500, 500)...)
			})
			if err != nil {
				t.Fatal(err)
			}
			for range 500 {
				<-came
			}
		}
	}
	probe := func() []time.Duration {
		took := make([]time.Duration, 0, 200)
		for range cap(took) {
			err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sql.Tx, p bus.Publisher) error {
				return p.Publish(t.Context(), "probes", placed{})
			})
			if err != nil {
				t.Fatal(err)
			}
			committed := time.Now()
			took = append(took, max(0, (<-came).Sub(committed))) // it may come before Do returns
		}
		slices.Sort(took)
		return took
	}
	n := scaled(5000, 50_000)
	through(n)
	before := probe()
	end := s.disturb(t)
	through(n)
	during := probe()
	end()
	t.Logf("after %d messages: p50 %v, p99 %v; after as many beside a long transaction: p50 %v, p99 %v", n, before[100], before[198], during[100], during[198])
	if limit := before[100] + max(before[100]/2, 5*time.Millisecond); during[100] > limit {
		t.Errorf("the median is %v, and was %v", during[100], before[100])
	}
}
