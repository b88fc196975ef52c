package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// tortureScale multiplies the number of messages: 1 is a few seconds for each pair, 20 what a release is tested with.
const tortureScale = 1

const (
	tortureWriters = 8
	tortureKeys    = 500
)

// ledger is what writers committed, and what came out.
type ledger struct {
	mu        sync.Mutex
	committed map[string]bool // ids
	rolled    map[string]bool
	seen      map[string]int // how often an id came
	last      map[string]int // the newest number of each key
	wrong     []string
	complete  chan struct{} // closed when all is written and has come
	written   bool
}

func newLedger() *ledger {
	return &ledger{committed: map[string]bool{}, rolled: map[string]bool{}, seen: map[string]int{}, last: map[string]int{}, complete: make(chan struct{})}
}

// ended notes a transaction.
func (l *ledger) ended(ids []string, committed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		if committed {
			l.committed[id] = true
		} else {
			l.rolled[id] = true
		}
	}
}

// came notes a message. The numbers of a key are dense: they come from a counter that rolls back with the message.
func (l *ledger) came(m *bus.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen[m.ID]++; l.seen[m.ID] == 1 {
		n, err := strconv.Atoi(string(m.Payload))
		if l.last[m.Key]++; err != nil || n != l.last[m.Key] {
			l.wrong = append(l.wrong, fmt.Sprintf("key %s: %s came where %d was to come", m.Key, m.Payload, l.last[m.Key]))
			l.last[m.Key] = n
		}
	}
	l.check()
}

func (l *ledger) check() {
	if l.written && len(l.seen) >= len(l.committed) && l.complete != nil {
		close(l.complete)
		l.complete = nil
	}
}

// all says that no more is written, and returns a channel that is closed when all of it has come.
func (l *ledger) all() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	complete := l.complete
	l.written = true
	l.check()
	return complete
}

// judge reports what is wrong, and returns the number of repeats.
func (l *ledger) judge(t *testing.T) (repeats int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.committed {
		if l.seen[id] == 0 {
			l.wrong = append(l.wrong, "lost: "+id)
		}
	}
	for id, n := range l.seen {
		repeats += n - 1
		if l.rolled[id] {
			l.wrong = append(l.wrong, "rolled back, and came: "+id)
		}
	}
	for i, w := range l.wrong {
		if t.Error(w); i > 20 {
			t.Errorf("and %d more", len(l.wrong)-i)
			break
		}
	}
	return repeats
}

// collect consumes a topic into the ledger until ctx ends.
func (l *ledger) collect(ctx context.Context, t *testing.T, b *bus.Bus, topic string) (wait func()) {
	t.Helper()
	s, err := b.Driver().Subscribe(ctx, bus.Subscription{Topic: topic, Group: unique("g"), InFlight: 10_000, Bytes: 64 << 20}, quiet{})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		defer s.Close(context.Background())
		dst := make([]bus.Delivery, 1000)
		for {
			n, err := s.Receive(ctx, dst, 64<<20)
			if err != nil {
				return
			}
			tokens := make([]bus.Token, n)
			for i := range n {
				l.came(dst[i].Message)
				tokens[i] = dst[i].Token
			}
			if s.Settle(ctx, tokens) != nil {
				return
			}
		}
	}()
	return func() { <-over }
}

// write runs writers until n messages are committed. Each transaction counts up some keys, in their order, publishes the
// counts, and takes its time; a tenth rolls back.
func (s *store) write(t *testing.T, l *ledger, counters, topic string, n int, longest time.Duration) {
	t.Helper()
	var wg sync.WaitGroup
	for range tortureWriters {
		wg.Go(func() {
			for done := 0; done < n/tortureWriters && !t.Failed(); {
				keys := map[int]bool{}
				for range 1 + rand.N(6) {
					keys[rand.N(tortureKeys)] = true
				}
				ids, committed, err := s.transaction(counters, topic, keys, rand.N(longest))
				if err != nil {
					t.Error(err)
					return
				}
				l.ended(ids, committed)
				if committed {
					done += len(ids)
				}
			}
		})
	}
	wg.Wait()
}

func (s *store) transaction(counters, topic string, keys map[int]bool, length time.Duration) (ids []string, committed bool, err error) {
	ctx := context.Background()
	tx, err := s.db.BeginTx(ctx, nil)
	if err != nil {
		return nil, false, err
	}
	defer tx.Rollback()
	var msgs []*bus.Message
	for _, k := range slices.Sorted(func(yield func(int) bool) {
		for k := range keys {
			if !yield(k) {
				return
			}
		}
	}) {
		if _, err := tx.ExecContext(ctx, s.args("UPDATE "+counters+" SET n = n + 1 WHERE k = ?"), k); err != nil {
			return nil, false, err
		}
		var n int
		if err := tx.QueryRowContext(ctx, s.args("SELECT n FROM "+counters+" WHERE k = ?"), k).Scan(&n); err != nil {
			return nil, false, err
		}
		m := &bus.Message{ID: bus.NewID(), Key: fmt.Sprint(k), Payload: []byte(strconv.Itoa(n))}
		msgs, ids = append(msgs, m), append(ids, m.ID)
	}
	time.Sleep(length / 2) // the work of a transaction, before and after it publishes
	if err := s.outbox.PublishMessages(ctx, tx, topic, msgs...); err != nil {
		return nil, false, err
	}
	time.Sleep(length / 2)
	if rand.N(10) == 0 {
		return ids, false, tx.Rollback()
	}
	return ids, true, tx.Commit()
}

func (s *store) counters(t *testing.T) string {
	t.Helper()
	table := s.own(t, "counter", "(k INT NOT NULL PRIMARY KEY, n INT NOT NULL)")
	rows := make([]string, tortureKeys)
	for i := range rows {
		rows[i] = fmt.Sprintf("(%d, 0)", i)
	}
	s.exec(t, "INSERT INTO "+table+" VALUES "+strings.Join(rows, ", "))
	return table
}

// disturb opens transactions that have nothing to do with the outbox, and stay open until end.
func (s *store) disturb(t *testing.T) (end func()) {
	t.Helper()
	if s.dialect == outbox.SQLite {
		return func() {} // there is one writer at a time
	}
	other := s.own(t, "other", "(n INT)")
	tx, err := s.db.BeginTx(context.Background(), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("INSERT INTO " + other + " VALUES (1)"); err != nil {
		t.Fatal(err)
	}
	var n int
	if err := tx.QueryRow("SELECT COUNT(*) FROM " + s.table("outbox")).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// TestTorture: several relays at once, of which some stop and come again, many writers with transactions that overlap and
// roll back, and a long transaction that has nothing to do with it.
func TestTorture(t *testing.T) {
	for _, to := range []string{"memory", "kafka", "rabbitmq"} {
		t.Run(to, func(t *testing.T) {
			databases(t, func(t *testing.T, s *store) {
				url := "memory:" + unique("torture")
				if to != "memory" {
					url = serverURL(t, "MILLRACE_"+strings.ToUpper(to)+"_URL")
				}
				torture(t, s, url)
			})
		})
	}
}

func torture(t *testing.T, s *store, url string) {
	n, longest := 4000*tortureScale, 30*time.Millisecond
	if s.dialect == outbox.SQLite {
		n, longest = n/4, 3*time.Millisecond // its transactions wait for each other
	}
	counters, topic := s.counters(t), unique("torture")
	l := newLedger()
	consumer := openBus(t, url)
	ctx, cancel := context.WithCancel(context.Background())
	wait := l.collect(ctx, t, consumer, topic)
	end := s.disturb(t)
	stopping := make(chan struct{})
	var relays sync.WaitGroup
	for range 4 {
		target := openBus(t, url, bus.WithLogger(slog.New(slog.NewTextHandler(t.Output(), nil))))
		relays.Go(func() {
			for {
				select {
				case <-stopping:
					return
				default:
				}
				r, err := s.outbox.NewRelay(s.db, target, outbox.RelayConfig{Lease: 10 * time.Second, Poll: 20 * time.Millisecond})
				if err != nil {
					t.Error(err)
					return
				}
				life, kill := context.WithTimeout(ctx, 200*time.Millisecond+rand.N(2*time.Second))
				if err := r.Run(life); err != nil {
					t.Error(err)
				}
				kill()
				if st := r.Stats(); st.LeaseLosses > 0 {
					t.Errorf("%+v", st)
				}
			}
		})
	}
	begun := time.Now()
	s.write(t, l, counters, topic, n, longest)
	wrote := time.Since(begun)
	select {
	case <-l.all():
	case <-time.After(patience):
	}
	took := time.Since(begun)
	close(stopping)
	cancel()
	relays.Wait()
	wait()
	end()
	repeats := l.judge(t)
	t.Logf("%d messages written in %v, relayed in %v, %d repeats", len(l.committed), wrote, took, repeats)
	if repeats > 0 {
		t.Error("clean stops repeated messages")
	}
	if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Pending != 0 || st.Relays != 0 {
		t.Errorf("%+v %v", st, err)
	}
}
