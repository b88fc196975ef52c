package outbox_test

import (
	"context"
	"errors"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// replace puts another message in the place of one, under the same number, as after a restore of
// the database.
func (s *store) replace(t *testing.T, id, by string) {
	t.Helper()
	s.exec(t, "UPDATE "+s.table("outbox")+" SET id = ?, created = created + 1 WHERE id = ?", by, id)
}

// held is a judge of messages that keeps the first one waiting until open is called.
func (f *faulty) held() (entered chan struct{}, open func()) {
	entered, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.judge = func(string, *bus.Message) error {
		once.Do(func() {
			close(entered)
			<-gate
		})
		return nil
	}
	return entered, sync.OnceFunc(func() { close(gate) })
}

// TestNumberGivenOutAgain: the database gives the number of a row that is being published to
// another message. A relay deletes the published row, not the row that has its number now.
func TestNumberGivenOutAgain(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, b := newFaulty(t)
		entered, open := f.held()
		defer open()
		s.publishAll(t, "t", numbered("a", 1)...)
		_, stop := s.runRelay(t, b, outbox.RelayConfig{Poll: 10 * time.Millisecond})
		<-entered
		s.replace(t, "a000", "b000")
		open()
		if got := f.await(t, 2)["a"]; !slices.Equal(got, []string{"a000", "b000"}) {
			t.Errorf("published %q", got)
		}
		stop()
		if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Pending != 0 {
			t.Errorf("%+v %v", st, err)
		}
	})
}

// TestConnectionLostWithRowsInHand: when a connection breaks, a relay reads its rows in hand again
// before it publishes them.
func TestConnectionLostWithRowsInHand(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, _ := newFaulty(t)
		entered, open := f.held()
		defer open()
		var breaks atomic.Bool
		judged := s.judged(t, func(_ context.Context, text string) error {
			if strings.HasPrefix(text, "SELECT seq, lane") && breaks.Swap(false) {
				return errors.New("connection reset")
			}
			return nil
		})
		s.publishAll(t, "t", numbered("a", 3)...)
		r, _ := judged.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
		<-entered // the first is on its way, the others are in hand
		breaks.Store(true)
		counts(t, r, func(s outbox.RelayStats) bool { return s.Failures > 0 })
		s.replace(t, "a001", "b001")
		s.replace(t, "a002", "b002")
		open()
		if got := f.await(t, 3)["a"]; !slices.Equal(got, []string{"a000", "b001", "b002"}) {
			t.Errorf("published %q", got)
		}
	})
}

// TestNumbersSetBackByAnOutage: after a connection has broken, a relay looks from the first number
// on. So a key with rows numbered before and after the outage keeps its order.
func TestNumbersSetBackByAnOutage(t *testing.T) {
	s := newStore(t, outbox.MySQL) // its claims have their floor in their text
	f, _ := newFaulty(t)
	var breaks, floored atomic.Bool
	floor := regexp.MustCompile(`seq > [1-9]`)
	judged := s.judged(t, func(_ context.Context, text string) error {
		if !strings.HasPrefix(text, "SELECT seq, lane") {
			return nil
		}
		floored.Store(floor.MatchString(text))
		if breaks.Swap(false) {
			return errors.New("connection reset")
		}
		return nil
	})
	r, _ := judged.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
	sent := 0
	counts(t, r, func(outbox.RelayStats) bool {
		s.publish(t, "t", &bus.Message{Key: "x"})
		sent++
		return floored.Load()
	})
	f.await(t, sent)
	breaks.Store(true)
	counts(t, r, func(s outbox.RelayStats) bool { return s.Failures > 0 })
	tx, err := s.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := s.outbox.PublishMessages(t.Context(), tx, "t", numbered("a", 2)...); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("UPDATE " + s.table("outbox") + " SET seq = 1 WHERE id = 'a000'"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := f.await(t, sent+2)["a"]; !slices.Equal(got, []string{"a000", "a001"}) {
		t.Errorf("published %q", got)
	}
}
