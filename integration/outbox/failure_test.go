package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox"
)

// faulty is a broker in memory that fails as a test wants.
type faulty struct {
	driver.Driver
	// judge returns the error of publishing a message now, or nil.
	judge func(topic string, m *bus.Message) error
	// put returns the error of a poison entry, or nil.
	put func(e driver.PoisonEntry) error

	mu   sync.Mutex
	took []*bus.Message
	more chan struct{} // has a value when took has grown
}

func newFaulty(t testing.TB) (*faulty, *bus.Bus) {
	t.Helper()
	m, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	f := &faulty{Driver: driver.Of(m), more: make(chan struct{}, 1)}
	b := bus.New(f)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, b
}

func (f *faulty) Publish(_ context.Context, topic string, msgs []*bus.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	errs := make([]error, len(msgs))
	for i, m := range msgs {
		if f.judge != nil {
			errs[i] = f.judge(topic, m)
		}
		if errs[i] == nil {
			f.took = append(f.took, m)
		}
	}
	select {
	case f.more <- struct{}{}:
	default:
	}
	if bus.PerMessage(errs) == nil {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

// await waits until the broker has taken n messages, and returns their ids by key.
func (f *faulty) await(t testing.TB, n int) map[string][]string {
	t.Helper()
	timeout := time.After(patience)
	for {
		f.mu.Lock()
		if len(f.took) >= n {
			byKey := map[string][]string{}
			for _, m := range f.took {
				byKey[m.Key] = append(byKey[m.Key], m.ID)
			}
			f.mu.Unlock()
			return byKey
		}
		f.mu.Unlock()
		select {
		case <-f.more:
		case <-timeout:
			t.Fatalf("the broker took %d of %d messages", len(f.took), n)
		}
	}
}

func (f *faulty) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := f.Driver.Poison(ctx, group)
	return faultyPoison{s, f}, err
}

type faultyPoison struct {
	driver.PoisonStore
	f *faulty
}

func (p faultyPoison) Put(ctx context.Context, entries ...driver.PoisonEntry) error {
	for _, e := range entries {
		if p.f.put != nil {
			if err := p.f.put(e); err != nil {
				return err
			}
		}
	}
	return p.PoisonStore.Put(ctx, entries...)
}

var (
	errRefused = &bus.Error{Op: "publish", Broker: "faulty", Err: bus.ErrTooLarge, Definite: true}
	errAway    = &bus.Error{Op: "publish", Broker: "faulty", Err: errors.New("connection refused"), Definite: true, Retryable: true}
	errUnknown = &bus.Error{Op: "publish", Broker: "faulty", Err: errors.New("connection reset"), Retryable: true}
)

// publish commits messages, each in a transaction of its own.
func (s *store) publish(t testing.TB, topic string, msgs ...*bus.Message) {
	t.Helper()
	for _, m := range msgs {
		tx, err := s.db.BeginTx(context.Background(), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.outbox.PublishMessages(context.Background(), tx, topic, m); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
}

func numbered(key string, n int) []*bus.Message {
	msgs := make([]*bus.Message, n)
	for i := range msgs {
		msgs[i] = &bus.Message{ID: fmt.Sprintf("%s%03d", key, i), Key: key, Payload: []byte("x")}
	}
	return msgs
}

func ids(msgs []*bus.Message) []string {
	var list []string
	for _, m := range msgs {
		list = append(list, m.ID)
	}
	return list
}

// TestSingleFailures: rows fail at random, some with an outcome that is not known: their keys wait,
// in order.
func TestSingleFailures(t *testing.T) {
	testlog.Expect(t, "its key waits")
	databases(t, func(t *testing.T, s *store) {
		f, b := newFaulty(t)
		tries := map[string]int{}
		f.judge = func(_ string, m *bus.Message) error {
			if tries[m.ID]++; tries[m.ID] > 2 || rand.N(10) > 0 {
				return nil
			}
			if rand.N(2) == 0 {
				f.took = append(f.took, m)
				return errUnknown
			}
			return errAway
		}
		var want int
		for k := range 8 {
			s.publish(t, "t", numbered(fmt.Sprintf("%c", 'a'+k), 12)...)
			want += 12
		}
		_, stop := s.runRelay(t, b, outbox.RelayConfig{Poll: 10 * time.Millisecond})
		seen := map[string]bool{}
		for n := want; len(seen) < want; n++ { // repeats count towards n only
			for _, list := range f.await(t, n) {
				for _, id := range list {
					seen[id] = true
				}
			}
		}
		stop()
		for k, list := range f.await(t, 0) {
			var first []string
			for _, id := range list {
				if !slices.Contains(first, id) {
					first = append(first, id)
				}
			}
			if !slices.Equal(first, ids(numbered(k, 12))) {
				t.Errorf("key %s: %v", k, list)
			}
		}
	})
}

// TestBlockedKeyBlocksNobody: a key that fails for long at its first row has more rows than a relay
// takes in hand. The others flow, and when the key goes on, it goes on in order.
func TestBlockedKeyBlocksNobody(t *testing.T) {
	testlog.Expect(t, "its key waits")
	databases(t, func(t *testing.T, s *store) {
		f, b := newFaulty(t)
		bad := true
		f.judge = func(_ string, m *bus.Message) error {
			if bad && m.Key == "bad" {
				return errAway
			}
			return nil
		}
		msgs := numbered("bad", 9000)
		msgs = append(msgs, numbered("good", 100)...)
		err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sqlTx, p bus.Publisher) error {
			return p.PublishMessages(t.Context(), "t", msgs...)
		})
		if err != nil {
			t.Fatal(err)
		}
		r, _ := s.runRelay(t, b, outbox.RelayConfig{Poll: 10 * time.Millisecond})
		if got := f.await(t, 100)["good"]; len(got) != 100 {
			t.Errorf("%d good ones", len(got))
		}
		if st := r.Stats(); st.Blocked != 1 || st.Buckets != 64 || st.Failures == 0 {
			t.Errorf("%+v", st)
		}
		f.mu.Lock()
		bad = false
		f.mu.Unlock()
		if got := f.await(t, len(msgs)); !slices.Equal(got["bad"], ids(numbered("bad", 9000))) {
			t.Error("the blocked key came out of order")
		}
	})
}

// TestRefused: a message that the broker refuses for good goes to the poison store with the reason,
// and its key goes on. If the poison store refuses it, it stays in the table. Retry brings both
// back.
func TestRefused(t *testing.T) {
	testlog.Expect(t, "its key waits", "the broker refused a message")
	databases(t, func(t *testing.T, s *store) {
		f, b := newFaulty(t)
		bad := true
		f.judge = func(_ string, m *bus.Message) error {
			if bad && (m.ID == "a001" || m.ID == "b001") {
				return errRefused
			}
			return nil
		}
		f.put = func(e driver.PoisonEntry) error {
			if e.Message.ID == "b001" {
				return errRefused
			}
			return nil
		}
		s.publish(t, "t", numbered("a", 3)...)
		s.publish(t, "t", numbered("b", 3)...)
		r, stop := s.runRelay(t, b, outbox.RelayConfig{Poll: 10 * time.Millisecond})
		got := f.await(t, 4)
		if !slices.Equal(got["a"], []string{"a000", "a002"}) || !slices.Equal(got["b"], []string{"b000", "b002"}) {
			t.Errorf("%v", got)
		}
		stop()
		if st := r.Stats(); st.Poisoned != 1 || st.Parked != 1 || st.Sent != 4 {
			t.Errorf("%+v", st)
		}
		if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Pending != 0 || st.Parked != 1 {
			t.Errorf("%+v %v", st, err)
		}
		store, err := driver.Of(b).Poison(t.Context(), outbox.PoisonGroup)
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range store.List(t.Context()) {
			if err != nil || e.Message.ID != "a001" || e.Topic != "t" || e.Failure.Class != "refused" || e.Failure.Attempts != 5 || e.Failure.Text != errRefused.Error() {
				t.Errorf("%+v %v", e, err)
			}
		}
		bad = false
		if n, err := s.outbox.Retry(t.Context(), s.db, b); n != 2 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		if n, err := s.outbox.Retry(t.Context(), s.db, b); n != 0 || err != nil {
			t.Errorf("%d %v", n, err)
		}
		s.runRelay(t, b, outbox.RelayConfig{})
		got = f.await(t, 6)
		if !slices.Equal(got["a"], []string{"a000", "a002", "a001"}) || !slices.Equal(got["b"], []string{"b000", "b002", "b001"}) {
			t.Errorf("%v", got)
		}
	})
}

// TestBrokerAway: nothing is lost or poisoned while the broker refuses everything, writers do not
// notice, and the relay keeps a bounded number of rows in hand.
func TestBrokerAway(t *testing.T) {
	testlog.Expect(t, "its key waits", "messages of many keys of a topic cannot be published")
	databases(t, func(t *testing.T, s *store) {
		f, b := newFaulty(t)
		away := true
		f.judge = func(string, *bus.Message) error {
			if away {
				return errUnknown
			}
			return nil
		}
		var msgs []*bus.Message
		for i := range 6000 {
			msgs = append(msgs, &bus.Message{ID: fmt.Sprint(i)})
		}
		r, _ := s.runRelay(t, b, outbox.RelayConfig{Poll: 10 * time.Millisecond})
		err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sqlTx, p bus.Publisher) error {
			return p.PublishMessages(t.Context(), "t", msgs...)
		})
		if err != nil {
			t.Fatal(err)
		}
		for r.Stats().Blocked < 1000 {
			f.await(t, 0)
			select {
			case <-f.more:
			case <-time.After(patience):
				t.Fatalf("%+v", r.Stats())
			}
		}
		f.mu.Lock()
		away = false
		f.mu.Unlock()
		f.await(t, len(msgs))
		if st := r.Stats(); st.Poisoned+st.Parked > 0 {
			t.Errorf("%+v", st)
		}
	})
}

// TestClosedBusEndsTheRelay: the relay ends with an error, and its rows stay.
func TestClosedBusEndsTheRelay(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	_, b := newFaulty(t)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	s.publish(t, "t", numbered("a", 3)...)
	r, err := s.outbox.NewRelay(s.db, b, outbox.RelayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("%v", err)
	}
	if err := r.Run(t.Context()); err == nil {
		t.Error("it ran twice")
	}
	if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Pending != 3 || st.Relays != 0 {
		t.Errorf("%+v %v", st, err)
	}
}

// TestTablesThatDoNotFit end the relay at once.
func TestTablesThatDoNotFit(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	_, b := newFaulty(t)
	o, err := outbox.New(s.dialect, outbox.Config{Prefix: "none_"})
	if err != nil {
		t.Fatal(err)
	}
	r, err := o.NewRelay(s.db, b, outbox.RelayConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context()); !errors.Is(err, bus.ErrUnsupported) {
		t.Errorf("%v", err)
	}
}

// TestOpenTransaction: a transaction that stays open keeps only its own messages. When it commits,
// they come before later messages of the same key.
func TestOpenTransaction(t *testing.T) {
	for _, d := range []outbox.Dialect{outbox.Postgres, outbox.MySQL} {
		t.Run(d.String(), func(t *testing.T) {
			s := newStore(t, d)
			f, b := newFaulty(t)
			_, stop := s.runRelay(t, b, outbox.RelayConfig{})
			s.publish(t, "t", numbered("before", 1)...)
			f.await(t, 1)
			k := numbered("k", 2)
			tx, err := s.db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.outbox.PublishMessages(t.Context(), tx, "t", k[0]); err != nil {
				t.Fatal(err)
			}
			// Long enough for a relay that looks from some number on to have passed the open one.
			sent := 1
			for begun := time.Now(); time.Since(begun) < time.Second; {
				s.publish(t, "t", &bus.Message{Key: "others"})
				sent++
				f.await(t, sent)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			s.publish(t, "t", k[1])
			if got := f.await(t, sent+2); !slices.Equal(got["k"], ids(k)) || len(got["others"]) != sent-1 {
				t.Errorf("%v, %d others", got["k"], len(got["others"]))
			}
			stop()
		})
	}
}

// logged is a log that says that something was logged.
type logged chan struct{}

func (l logged) Handle(context.Context, slog.Record) error {
	select {
	case l <- struct{}{}:
	default:
	}
	return nil
}
func (l logged) Enabled(context.Context, slog.Level) bool { return true }
func (l logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l logged) WithGroup(string) slog.Handler            { return l }

// TestKafkaRefuses: a message that a real broker refuses for good ends in the right place, with the
// broker's reason.
func TestKafkaRefuses(t *testing.T) {
	url, _, _ := strings.Cut(brokertest.URL(t, "kafka"), "?")
	s := newStore(t, outbox.Postgres)
	topic, missing := unique("refused"), unique("missing")
	consumer := openBus(t, url+"?partitions=4")
	if err := consumer.Publish(t.Context(), topic, 1, bus.WithID("first")); err != nil { // creates it
		t.Fatal(err)
	}
	log := make(logged, 100)
	b := openBus(t, url, bus.WithLogger(slog.New(log))) // creates no topics
	large, behind := numbered("large", 2), bus.NewID()
	large[0].Payload = make([]byte, 20<<20)
	large[1].ID = behind
	lost := &bus.Message{ID: bus.NewID(), Key: "k"}
	s.publish(t, topic, large...)
	s.publish(t, missing, lost)
	r, stop := s.runRelay(t, b, outbox.RelayConfig{})
	got := ids(receive(t, consumer, topic, 2))
	if slices.Sort(got); !slices.Contains(got, behind) {
		t.Errorf("%v", got)
	}
	for timeout := time.After(patience); r.Stats().Parked+r.Stats().Poisoned < 2; {
		select {
		case <-log:
		case <-timeout:
			t.Fatalf("%+v", r.Stats())
		}
	}
	stop()
	store, err := driver.Of(b).Poison(t.Context(), outbox.PoisonGroup)
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for e, err := range store.List(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]string{lost.ID: missing, large[0].ID: topic}[e.Message.ID]
		if want == "" {
			continue // another test's
		}
		if found++; e.Topic != want || e.Failure.Class != "refused" {
			t.Errorf("%s of topic %q: %+v", e.Message.ID, e.Topic, e.Failure)
		}
		if err := store.Remove(t.Context(), e.ID); err != nil {
			t.Error(err)
		}
	}
	status, err := s.outbox.Status(t.Context(), s.db)
	if err != nil || found != 2 || status.Pending != 0 || status.Parked != 0 {
		t.Errorf("%+v %v, found %d", status, err, found)
	}
}
