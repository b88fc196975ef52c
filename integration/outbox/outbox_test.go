package outbox_test

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

type placed struct {
	Number int
	Cents  int64
}

func (placed) EventType() string  { return "order.placed" }
func (p placed) EventKey() string { return "k" }

// TestRoundTrip: a message published in a transaction comes out of the broker as if it had been
// published there.
func TestRoundTrip(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		var err error
		if s.outbox, err = outbox.New(s.dialect, s.config, bus.WithSource("/shop")); err != nil {
			t.Fatal(err)
		}
		b := openBus(t, "memory:")
		topic := unique("orders")
		msgs := []*bus.Message{
			{ID: "1", Key: "a\x00\xff", Type: "t", Subject: "s", Source: "/x", ContentType: "text/plain", Payload: []byte("one"), Time: time.Unix(1700000000, 123456000).UTC(), Headers: bus.Headers{{Name: "h", Value: "\xff\x00"}, {Name: "h", Value: "2"}}},
			{ID: "2", Payload: nil},
			{ID: "3", Payload: []byte{}},
			{ID: "4", Payload: []byte{0, 1, 255}, Key: "ключ"},
		}
		ctx := bus.ContextWithHeaders(t.Context(), bus.Header{Name: "traceparent", Value: "00-1"})
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.outbox.PublishMessages(ctx, tx, topic, msgs...); err != nil {
			t.Fatal(err)
		}
		if err := s.outbox.Publish(ctx, tx, topic, placed{7, 100}, bus.WithID("5"), bus.WithHeader("x", "y")); err != nil {
			t.Fatal(err)
		}
		if err := bus.PublishAll(ctx, s.outbox.In(tx), topic, make([]placed, 300)); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		lost, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.outbox.Publish(ctx, lost, topic, placed{8, 100}, bus.WithID("never")); err != nil {
			t.Fatal(err)
		}
		if err := lost.Rollback(); err != nil {
			t.Fatal(err)
		}
		_, stop := s.runRelay(t, b, outbox.RelayConfig{})
		got := map[string]*bus.Message{}
		for _, m := range receive(t, b, topic, 305) {
			got[m.ID] = m
		}
		for _, m := range msgs {
			m.Time = m.Time.UTC() // without the monotonic clock's reading
			if g := got[m.ID]; !reflect.DeepEqual(m, g) {
				t.Errorf("%s:\n%+v\n%+v", m.ID, m, g)
			}
		}
		m := got["5"]
		if m == nil || m.Type != "order.placed" || m.Source != "/shop" || m.Key != "k" || m.Headers.Get("x") != "y" || m.Headers.Get("traceparent") != "00-1" || string(m.Payload) != `{"Number":7,"Cents":100}` {
			t.Errorf("%+v", m)
		}
		if len(got) != 305 || got["never"] != nil {
			t.Errorf("%d messages", len(got))
		}
		stop()
		st, err := s.outbox.Status(t.Context(), s.db)
		if err != nil || st != (outbox.Status{}) {
			t.Errorf("%+v %v", st, err)
		}
	})
}

func TestPublishRefusesWhatNoBrokerTakes(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	tx, err := s.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if err := s.outbox.Publish(t.Context(), tx, "bad topic", 1); !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("topic: %v", err)
	}
	if err := s.outbox.Publish(t.Context(), tx, "t", 1, bus.WithHeader("ce_id", "x")); !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("header: %v", err)
	}
	if err := s.outbox.Publish(t.Context(), tx, "t", make(chan int)); err == nil {
		t.Error("a channel was encoded")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.outbox.Publish(ctx, tx, "t", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("context: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, tc := range []struct {
		d    outbox.Dialect
		c    outbox.Config
		want string
	}{
		{0, outbox.Config{}, "the dialect is Dialect(0): want Postgres, MySQL or SQLite"},
		{outbox.MySQL, outbox.Config{Schema: "x"}, `Schema is "x": only PostgreSQL has schemas`},
		{outbox.Postgres, outbox.Config{Schema: "X;"}, `Schema is "X;"`},
		{outbox.Postgres, outbox.Config{Prefix: "1"}, `Prefix is "1"`},
		{outbox.Postgres, outbox.Config{InboxRetention: time.Second}, "InboxRetention is 1s: want at least 1m"},
	} {
		if _, err := outbox.New(tc.d, tc.c); err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%v, want %s", err, tc.want)
		}
	}
	s := newStore(t, outbox.SQLite)
	b := openBus(t, "memory:")
	for _, tc := range []struct {
		c    outbox.RelayConfig
		want string
	}{
		{outbox.RelayConfig{Batch: -1}, "Batch is -1: want 1 to 10,000"},
		{outbox.RelayConfig{Lease: 1}, "Lease is 1ns: want 500ms to 10m0s"},
		{outbox.RelayConfig{Poll: time.Hour}, "Poll is 1h0m0s"},
	} {
		if _, err := s.outbox.NewRelay(s.db, b, tc.c); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%v, want %s", err, tc.want)
		}
	}
}

// TestMigrateAtOnce: many processes start at the same time.
func TestMigrateAtOnce(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		s.clean(t)
		if s.dialect == outbox.SQLite {
			s.dsn = strings.Replace(s.dsn, "test.db", "other.db", 1)
		}
		s.open(t)
		// The first connection makes the file one with a write-ahead log: SQLite does not wait when
		// others do that, too.
		if err := s.db.PingContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		errs := make(chan error)
		for range 8 {
			go func() { errs <- s.outbox.Migrate(t.Context(), s.db) }()
		}
		for range 8 {
			if err := <-errs; err != nil {
				t.Error(err)
			}
		}
		s.exec(t, "UPDATE "+s.table("outbox_meta")+" SET version = 99")
		if err := s.outbox.Migrate(t.Context(), s.db); !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), "version 99") {
			t.Errorf("%v", err)
		}
	})
}

// TestMigrateFromTheFirstVersion: messages that were written before the program was updated go out
// after it.
func TestMigrateFromTheFirstVersion(t *testing.T) {
	s := newStore(t, outbox.MySQL)
	s.exec(t, "DROP TABLE "+s.table("outbox_fence"))
	s.exec(t, "UPDATE "+s.table("outbox_meta")+" SET version = 1")
	s.exec(t, "INSERT INTO "+s.table("outbox")+" (lane, created, time, topic, id, msg_key, type, source, subject, content_type) VALUES (1, 0, 0, 't', 'old', '', '', '', '', '')")
	if err := s.outbox.Migrate(t.Context(), s.db); err != nil {
		t.Fatal(err)
	}
	s.publish(t, "t", &bus.Message{ID: "new"})
	b := openBus(t, "memory:")
	s.runRelay(t, b, outbox.RelayConfig{})
	receive(t, b, "t", 2)
}
