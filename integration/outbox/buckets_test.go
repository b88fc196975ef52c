package outbox_test

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// TestHandOver: a relay that comes gets its part of the buckets only when the messages of each are
// no longer on their way by the other, so nothing is repeated.
func TestHandOver(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, slow := newFaulty(t)
		entered, gate := make(chan struct{}), make(chan struct{})
		var once sync.Once
		f.judge = func(string, *bus.Message) error {
			once.Do(func() {
				close(entered)
				<-gate
			})
			return nil
		}
		g, quick := newFaulty(t)
		var msgs []*bus.Message
		for i := range 300 {
			msgs = append(msgs, &bus.Message{ID: fmt.Sprint(i), Key: fmt.Sprint(i)})
		}
		if err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sqlTx, p bus.Publisher) error {
			return p.PublishMessages(t.Context(), "t", msgs...)
		}); err != nil {
			t.Fatal(err)
		}
		_, stopFirst := s.runRelay(t, slow, outbox.RelayConfig{})
		<-entered
		second, stopSecond := s.runRelay(t, quick, outbox.RelayConfig{})
		select {
		case <-g.more: // a hasty hand-over would repeat messages now
		case <-time.After(2 * time.Second):
		}
		close(gate)
		f.await(t, 300)
		more := 0
		for timeout := time.After(patience); second.Stats().Buckets != 32; more++ {
			s.publish(t, "t", &bus.Message{Key: "more"}) // until the second relay has its part
			select {
			case <-f.more:
			case <-g.more:
			case <-timeout:
				t.Fatalf("%+v", second.Stats())
			}
		}
		for i := range 300 {
			s.publish(t, "t", &bus.Message{ID: fmt.Sprint("later", i), Key: fmt.Sprint(i)})
		}
		stopFirst()
		stopSecond()
		s.runRelay(t, quick, outbox.RelayConfig{})
		want, byFirst := 600+more, 0
		for _, list := range f.await(t, 300) {
			byFirst += len(list)
		}
		g.await(t, want-byFirst)
		counts := map[string]int{}
		for _, broker := range []*faulty{f, g} {
			for _, list := range broker.await(t, 0) {
				for _, id := range list {
					counts[id]++
				}
			}
		}
		for id, n := range counts {
			if n != 1 {
				t.Errorf("%s came %d times", id, n)
			}
		}
		if len(counts) != want || len(g.await(t, 0)) == 0 {
			t.Errorf("%d messages, %d keys by the second relay", len(counts), len(g.await(t, 0)))
		}
	})
}

// TestBucketsThatStay: buckets were on their way to another relay, which ends before it has them.
// They are read from the beginning again: messages that came meanwhile are not passed over.
func TestBucketsThatStay(t *testing.T) {
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL} {
		t.Run(d.String(), func(t *testing.T) {
			s := newStore(t, d)
			f, b := newFaulty(t)
			gate := make(chan struct{})
			f.judge = func(string, *bus.Message) error {
				<-gate
				return nil
			}
			const keys = 64
			sent := 0
			write := func(word string) {
				var msgs []*bus.Message
				for k := range keys {
					msgs = append(msgs, &bus.Message{ID: word + fmt.Sprint(k), Key: fmt.Sprint(k)})
				}
				sent += keys
				s.publish(t, "t", msgs...)
			}
			write("a")
			r, _ := s.runRelay(t, b, outbox.RelayConfig{})
			buckets := func(n int) { counts(t, r, func(s outbox.RelayStats) bool { return s.Buckets == n }) }
			buckets(64)
			s.exec(t, "INSERT INTO "+s.table("outbox_relay")+" (id, expires) VALUES ('zzz', 9000000000000000)")
			buckets(32)
			tx, err := s.db.BeginTx(t.Context(), nil) // no bucket moves while it is open
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("UPDATE " + s.table("outbox_meta") + " SET moves = moves + 1"); err != nil {
				t.Fatal(err)
			}
			close(gate)
			f.await(t, keys)
			write("b")
			for begun := time.Now(); time.Since(begun) < time.Second; time.Sleep(20 * time.Millisecond) { // the floor moves
				write("x")
			}
			if _, err := tx.Exec("DELETE FROM " + s.table("outbox_relay") + " WHERE id = 'zzz'"); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			buckets(64)
			write("c")
			for k, list := range f.await(t, sent) {
				if list[0] != "a"+k || list[1] != "b"+k || list[len(list)-1] != "c"+k {
					t.Errorf("key %s: %s, %s, … %s", k, list[0], list[1], list[len(list)-1])
				}
			}
		})
	}
}
