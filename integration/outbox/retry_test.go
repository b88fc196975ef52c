package outbox_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/outbox"
)

// TestRetryTakesItsOwn: two services share a broker, and so a poison store. Their outboxes have the
// same names.
func TestRetryTakesItsOwn(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, _ := newFaulty(t)
		f.judge = func(string, *bus.Message) error { return errRefused }
		b := silent(f)
		other := newStore(t, outbox.SQLite)
		for _, of := range []*store{s, other} {
			of.publish(t, "t", numbered("a", 1)...)
			r, stop := of.runRelay(t, b, outbox.RelayConfig{Poll: 10 * time.Millisecond})
			counts(t, r, func(s outbox.RelayStats) bool { return s.Poisoned > 0 })
			stop()
		}
		for _, of := range []*store{s, other} {
			for _, want := range []int64{1, 0} {
				if n, err := of.outbox.Retry(t.Context(), of.db, b); n != want || err != nil {
					t.Errorf("retried %d, want %d: %v", n, want, err)
				}
			}
		}
	})
}

// TestRetryWaitsForNobody: somebody writes while parked messages are put back, and neither waits
// for the other. SQLite has one writer at a time.
func TestRetryWaitsForNobody(t *testing.T) {
	inDialects(t, []outbox.Dialect{outbox.Postgres, outbox.MySQL}, func(t *testing.T, s *store) {
		s.publish(t, "t", numbered("a", 3)...)
		s.exec(t, "UPDATE "+s.table("outbox")+" SET parked = 'too large' WHERE id <> 'a001'")
		open, err := s.db.BeginTx(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer open.Rollback()
		if err := s.outbox.Publish(t.Context(), open, "t", placed{}); err != nil {
			t.Fatal(err)
		}
		if n, err := s.outbox.Retry(t.Context(), s.db, nil); n != 2 || err != nil {
			t.Errorf("retried %d: %v", n, err)
		}
		if err := open.Commit(); err != nil {
			t.Error(err)
		}
		if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Pending != 4 || st.Parked != 0 {
			t.Errorf("%+v %v", st, err)
		}
	})
}

// TestParkedWithAnyReason: a broker's answer may be no text for a database, or too long for it.
func TestParkedWithAnyReason(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, _ := newFaulty(t)
		cause := errors.New("bad \x00 and \xff " + strings.Repeat("é", 100_000))
		f.judge = func(string, *bus.Message) error {
			return &bus.Error{Op: "publish", Err: fmt.Errorf("%w: %w", cause, bus.ErrInvalid), Definite: true}
		}
		f.put = func(driver.PoisonEntry) error { return errRefused }
		s.publish(t, "t", numbered("a", 1)...)
		r, _ := s.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
		counts(t, r, func(s outbox.RelayStats) bool { return s.Parked > 0 })
		if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Parked != 1 {
			t.Errorf("%+v %v", st, err)
		}
	})
}

// TestForeignRowWithoutID: whatever it takes to publish a row that another program inserted without
// an id, it has one, and always the same.
func TestForeignRowWithoutID(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, _ := newFaulty(t)
		var ids []string
		f.judge = func(_ string, m *bus.Message) error {
			if ids = append(ids, m.ID); len(ids) < 3 {
				return errAway
			}
			return nil
		}
		s.exec(t, "INSERT INTO "+s.table("outbox")+" (lane, created, time, topic, id, msg_key, type, source, subject, content_type) VALUES (5, 0, 0, 't', '', '', '', '', '', '')")
		s.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
		f.await(t, 1)
		f.mu.Lock()
		defer f.mu.Unlock()
		if ids[0] == "" || ids[0] != ids[1] || ids[0] != ids[2] {
			t.Errorf("ids %q", ids)
		}
	})
}

// TestWithoutTables: an error names missing tables.
func TestWithoutTables(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		s.clean(t)
		if s.dialect == outbox.SQLite {
			s.dsn = strings.Replace(s.dsn, "test.db", "other.db", 1)
		}
		s.open(t)
		_, status := s.outbox.Status(t.Context(), s.db)
		_, retry := s.outbox.Retry(t.Context(), s.db, nil)
		for _, err := range []error{status, retry} {
			if !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), "call Migrate") {
				t.Error(err)
			}
		}
	})
}
