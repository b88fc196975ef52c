package outbox_test

import (
	"context"
	"database/sql"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// TestPreparedOutlivesTheServer: after the server comes back, a prepared transaction has another
// name in PostgreSQL's locks. A relay that knows the old name must not pass over its message: it
// comes before later messages of its key.
func TestPreparedOutlivesTheServer(t *testing.T) {
	if !whole {
		t.Skip("kills the server, only at the whole size: make torture")
	}
	server := killable(t, "postgres")
	s := newStore(t, outbox.Postgres)
	if s.count(t, "SELECT current_setting('max_prepared_transactions')::int") == 0 {
		t.Skip("the server has max_prepared_transactions=0")
	}
	f, _ := newFaulty(t)
	before := s.db
	t.Cleanup(func() { before.Close() })
	// The lease outlives the server's absence: a relay that begins afresh knows no old names.
	relay, _ := s.runRelay(t, silent(f), outbox.RelayConfig{Lease: 5 * time.Minute, Poll: 10 * time.Millisecond})
	sent := 0
	// others writes for long enough that the relay's floor would move on.
	others := func() {
		t.Helper()
		for range 20 {
			s.publish(t, "t", &bus.Message{ID: bus.NewID()})
			sent++
			f.await(t, sent)
			time.Sleep(20 * time.Millisecond)
		}
	}
	conn, err := s.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	name := unique("outbox")
	exec := func(text string) {
		t.Helper()
		if _, err := conn.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	exec("BEGIN")
	if err := s.outbox.PublishMessages(t.Context(), conn, "t", &bus.Message{ID: "first", Key: "k"}); err != nil {
		t.Fatal(err)
	}
	others()
	exec("PREPARE TRANSACTION '" + name + "'")
	t.Cleanup(func() {
		if t.Failed() { // it would keep the tables for ever
			_, _ = s.db.ExecContext(context.Background(), "ROLLBACK PREPARED '"+name+"'")
		}
	})
	others()
	_ = conn.Close()
	server.kill(t)
	server.start(t)
	if s.db, err = sql.Open(s.driver, s.dsn); err != nil { // without connections from before
		t.Fatal(err)
	}
	others()
	if _, err := s.db.ExecContext(context.Background(), "COMMIT PREPARED '"+name+"'"); err != nil {
		t.Fatal(err)
	}
	s.publish(t, "t", &bus.Message{ID: "second", Key: "k"})
	ids := f.await(t, sent+2)["k"]
	if len(ids) != 2 || ids[0] != "first" || ids[1] != "second" {
		t.Errorf("of the key came %v", ids)
	}
	if st := relay.Stats(); st.LeaseLosses > 0 {
		t.Errorf("%+v: the relay has begun afresh, and the test said nothing", st)
	}
}
