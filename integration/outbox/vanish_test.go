package outbox_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/outbox"
)

// TestSharesOutliveABlockedMove: a stuck process holds the lock for moving buckets. Meanwhile
// relays keep their leases and publish.
func TestSharesOutliveABlockedMove(t *testing.T) {
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			s := newStore(t, d)
			f, b := newFaulty(t)
			const lease = time.Second
			r, _ := s.runRelay(t, b, outbox.RelayConfig{Lease: lease})
			counts(t, r, func(s outbox.RelayStats) bool { return s.Buckets == 64 })
			tx, err := s.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			if _, err := tx.Exec("UPDATE " + s.table("outbox_meta") + " SET moves = moves + 1"); err != nil {
				t.Fatal(err)
			}
			sent := 0
			for begun := time.Now(); time.Since(begun) < 2*lease; {
				s.publish(t, "t", numbered("k", 1)...)
				sent++
				f.await(t, sent)
			}
			if st := r.Stats(); st.LeaseLosses > 0 || st.Buckets == 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// TestAHostVanishesWhileItMoves: the server ends the transaction of a relay that moves buckets and
// is not heard of any more, so that another gets them.
func TestAHostVanishesWhileItMoves(t *testing.T) {
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL} {
		t.Run(d.String(), func(t *testing.T) {
			t.Parallel()
			s := newStore(t, d)
			f, _ := newFaulty(t)
			moving, gate := make(chan struct{}), make(chan struct{})
			var once sync.Once
			vanishing := s.judged(t, func(_ context.Context, text string) error {
				if strings.HasPrefix(text, "UPDATE "+s.table("outbox_bucket")) {
					once.Do(func() { close(moving) })
					<-gate // whatever becomes of its context: a host that is gone closes no connection
				}
				return nil
			})
			const lease = time.Second
			vanishing.runRelay(t, silent(f), outbox.RelayConfig{Lease: lease})
			t.Cleanup(func() { close(gate) }) // before the relay is stopped
			<-moving
			r, _ := s.runRelay(t, silent(f), outbox.RelayConfig{Lease: lease})
			counts(t, r, func(s outbox.RelayStats) bool { return s.Buckets == 64 })
			s.publish(t, "t", numbered("k", 1)...)
			f.await(t, 1)
		})
	}
}
