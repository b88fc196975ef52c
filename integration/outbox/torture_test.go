package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/outbox"
)

const (
	tortureWriters = 8
	tortureKeys    = 500
	tortureRelays  = 4
	longest        = 30 * time.Millisecond // of a writer's transaction
)

// pairs runs a test for each database and each broker: in memory, on the database's own server, and
// the others.
func pairs(t *testing.T, test func(t *testing.T, s *store, to string)) {
	for _, to := range []string{"memory", "same", "kafka", "rabbitmq"} {
		t.Run(to, func(t *testing.T) {
			databases(t, func(t *testing.T, s *store) { test(t, s, to) })
		})
	}
}

// serverOf is the name of the broker, or of the database if that is the broker; "" if it is no
// server.
func (s *store) serverOf(to string) string {
	switch {
	case to == "memory", to == "same" && s.dialect == outbox.SQLite:
		return ""
	case to == "same":
		return s.dialect.String()
	}
	return to
}

// busURL is a bus on the broker, with tables of its own that go with the test if it is in the same
// database.
func (s *store) busURL(t testing.TB, to string) string {
	t.Helper()
	switch {
	case to == "memory":
		return "memory:" + unique("bus") + "?retain=100000"
	case to != "same":
		return brokertest.URL(t, to)
	}
	switch s.dialect {
	case outbox.Postgres:
		return brokertest.Postgres(t)
	case outbox.MySQL:
		return brokertest.MySQL(t)
	default:
		path, _, _ := strings.Cut(strings.TrimPrefix(s.dsn, "file:"), "?")
		return "sqlite:" + url.PathEscape(path) + "?synchronous=normal"
	}
}

// writers write messages; a counter of each key numbers them in the same transaction.
type writers struct {
	*store
	topic    string
	counters string
	keys     int  // at most, of a transaction
	mayFail  bool // because the database is killed

	// writing is for SQLite, which lets in at random whoever waits for its one lock: its writers
	// wait for each other here instead, and leave some room for the relays.
	writing sync.Mutex

	mu         sync.Mutex
	rolledBack map[string]bool // ids
}

func (s *store) writers(t *testing.T, topic string) *writers {
	t.Helper()
	w := &writers{store: s, topic: topic, counters: s.own(t, "counter", "(k INT NOT NULL PRIMARY KEY, n INT NOT NULL)"), keys: 6, rolledBack: map[string]bool{}}
	if s.dialect == outbox.SQLite {
		w.keys = 24 // its transactions wait for each other
	}
	rows := make([]string, tortureKeys)
	for i := range rows {
		rows[i] = fmt.Sprintf("(%d, 0)", i)
	}
	s.exec(t, "INSERT INTO "+w.counters+" VALUES "+strings.Join(rows, ", "))
	return w
}

// run writes until n messages are committed.
func (w *writers) run(t *testing.T, n int) {
	t.Helper()
	var wg sync.WaitGroup
	for range tortureWriters {
		wg.Go(func() {
			for done := 0; done < n/tortureWriters && !t.Failed(); {
				committed, err := w.transaction()
				if err != nil && !w.mayFail {
					t.Error(err)
				}
				done += committed
			}
		})
	}
	wg.Wait()
}

// transaction counts up some keys, publishes the counts, and takes its time; a tenth rolls back.
func (w *writers) transaction() (committed int, err error) {
	ctx := context.Background()
	if w.dialect == outbox.SQLite {
		w.writing.Lock()
		defer func() {
			time.Sleep(5 * time.Millisecond) // the relay gets the lock, too
			w.writing.Unlock()
		}()
	}
	tx, err := w.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback()
	work := time.Millisecond + rand.N(longest)
	keys := map[string]bool{}
	for range 1 + rand.N(w.keys) {
		keys[strconv.Itoa(rand.N(tortureKeys))] = true
	}
	of := " WHERE k IN (" + strings.Join(slices.Collect(maps.Keys(keys)), ", ") + ")"
	find := "SELECT k, n FROM " + w.counters + of + " ORDER BY k"
	if w.dialect != outbox.SQLite {
		find += " FOR UPDATE"
	}
	rows, err := tx.QueryContext(ctx, find)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var msgs []*bus.Message
	for rows.Next() {
		var k, n int
		if err := rows.Scan(&k, &n); err != nil {
			return 0, err
		}
		msgs = append(msgs, &bus.Message{ID: bus.NewID(), Key: strconv.Itoa(k), Payload: []byte(strconv.Itoa(n + 1))})
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if _, err := tx.ExecContext(ctx, "UPDATE "+w.counters+" SET n = n + 1"+of); err != nil {
		return 0, err
	}
	time.Sleep(work / 2) // the work of a transaction, before and after it publishes
	if err := w.outbox.PublishMessages(ctx, tx, w.topic, msgs...); err != nil {
		return 0, err
	}
	time.Sleep(work / 2)
	if rand.N(10) == 0 {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, m := range msgs {
			w.rolledBack[m.ID] = true
		}
		return 0, tx.Rollback()
	}
	return len(msgs), tx.Commit()
}

// last returns the last number of each key, and their sum, which is the number of messages.
func (w *writers) last(t *testing.T) (last map[string]int, sum int) {
	t.Helper()
	last = map[string]int{}
	err := each(w.store, "SELECT k, n FROM "+w.counters, func(rows *sql.Rows) error {
		var k string
		var n int
		err := rows.Scan(&k, &n)
		last[k] = n
		sum += n
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return last, sum
}

// disturb opens a transaction that has nothing to do with the outbox but reads it, and stays open
// until end.
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
	return func() { _ = tx.Rollback() } // the server may have been killed
}

// relays are processes that are killed one after the other, and replaced.
type relays struct {
	config    childConfig
	store     *store
	bus       *bus.Bus // to which the test publishes for them; nil if they do it themselves
	processes []*process
	inFlight  int // messages that kills may have repeated
	unknown   int // and messages that a failure of the broker may have repeated
	losses    int // of leases, if the machine has no time to renew them; each may repeat a message of each key
}

func (s *store) relays(t *testing.T, c childConfig, b *bus.Bus) *relays {
	t.Helper()
	r := &relays{config: c, store: s, bus: b}
	for range tortureRelays {
		r.processes = append(r.processes, c.start(t, s, b))
	}
	return r
}

// kill kills the oldest and starts another.
func (r *relays) kill(t *testing.T) {
	t.Helper()
	p := r.processes[0]
	r.inFlight += p.kill(t)
	r.unknown += p.unknown
	r.losses += p.leaseLosses
	r.processes = append(r.processes[1:], r.config.start(t, r.store, r.bus))
}

func (r *relays) stop(t *testing.T) {
	t.Helper()
	for _, p := range r.processes {
		p.stop(t)
	}
	for _, p := range r.processes {
		p.wait(t)
		r.unknown += p.unknown
		r.losses += p.leaseLosses
	}
}

// TestTorture: four relays at once, which are killed; many writers with transactions that overlap
// and roll back; a long transaction that has nothing to do with it; and at the whole size, a broker
// that is killed twice. Nothing is lost, nothing comes that was rolled back, each key is in order,
// and no more comes twice than was on its way when something was killed.
func TestTorture(t *testing.T) {
	pairs(t, torture)
}

func torture(t *testing.T, s *store, to string) {
	n, kills := scaled(1500, 50_000), scaled(3, 20)
	restarts := map[int]bool{}
	var broker server
	if whole && s.serverOf(to) != "" {
		broker, restarts = killable(t, s.serverOf(to)), map[int]bool{kills / 3: true, 2 * kills / 3: true}
	}
	target, topic := s.busURL(t, to), unique("torture")
	b := openBus(t, target, bus.WithLogger(slog.New(slog.DiscardHandler)))
	// One group reads all the time. A message may come to it twice because a killed broker lost its
	// settlement. Another group reads afterwards: a message that comes to it twice was published
	// twice.
	live, after, late := newReading(), newReading(), unique("late")
	stopLive := live.run(t, b, topic, unique("live"))
	newReading().run(t, b, topic, late)()
	w := s.writers(t, topic)
	w.mayFail = to == "same" && broker.name != ""
	end := s.disturb(t)
	config := childConfig{URL: target, Lease: scaled(time.Second, outbox.DefaultLease)}
	if s.dialect == outbox.SQLite { // its relays wait for the one lock when they renew their leases
		config.Lease = scaled(4*time.Second, outbox.DefaultLease)
	}
	var publisher *bus.Bus
	if to == "memory" {
		config.URL, publisher = "", b
	}
	r := s.relays(t, config, publisher)
	begun := time.Now()
	var chaos sync.WaitGroup
	chaos.Go(func() {
		for i := range kills {
			time.Sleep(scaled(100*time.Millisecond, 500*time.Millisecond) + rand.N(scaled(300*time.Millisecond, time.Second))) // any moment
			if restarts[i] {
				broker.kill(t)
				broker.start(t)
			}
			r.kill(t)
		}
	})
	w.run(t, n)
	wrote := time.Since(begun)
	chaos.Wait()
	last, sum := w.last(t)
	await(t, live.all(sum))
	took := time.Since(begun)
	r.stop(t)
	stopLive()
	end()
	var ends []*bus.Message
	for k := range last {
		last[k]++
		ends = append(ends, &bus.Message{ID: "end" + k, Key: k, Payload: []byte(strconv.Itoa(last[k]))})
	}
	if err := b.PublishMessages(t.Context(), topic, ends...); err != nil {
		t.Fatal(err)
	}
	stopAfter := after.run(t, b, topic, late)
	await(t, after.all(sum+len(last)))
	stopAfter()
	repeats := after.judge(t, "read afterwards", last, w.rolledBack)
	for k := range last {
		last[k]--
	}
	again := live.judge(t, "read all the time", last, w.rolledBack)
	t.Logf("%d messages in %v, written in %v; %d kills with %d messages in flight, %d more with an unknown outcome, and %d leases lost; %d were published again, %d came again",
		sum, took.Round(time.Second/10), wrote.Round(time.Second/10), kills, r.inFlight, r.unknown, r.losses, repeats, again)
	if repeats > r.inFlight+r.unknown+r.losses*tortureKeys {
		t.Errorf("%d repeats, which is more than was in flight", repeats)
	}
	if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Pending != 0 || st.Parked != 0 {
		t.Errorf("%+v %v", st, err)
	}
}

// await waits for an event on c that should come soon.
func await(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Error("it did not come in time")
	}
}

// TestCleanStops: relays that stop and come again, several at once, repeat nothing.
func TestCleanStops(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		topic := unique("torture")
		target := openBus(t, "memory:"+unique("stops"), bus.WithLogger(slog.New(slog.NewTextHandler(t.Output(), nil))))
		live := newReading()
		stopLive := live.run(t, target, topic, unique("g"))
		w := s.writers(t, topic)
		end := s.disturb(t)
		ctx, stop := context.WithCancel(context.Background())
		var relays sync.WaitGroup
		for range tortureRelays {
			relays.Go(func() {
				for ctx.Err() == nil {
					r, err := s.outbox.NewRelay(s.db, target, outbox.RelayConfig{Lease: 10 * time.Second, Poll: 20 * time.Millisecond, DrainTimeout: time.Minute})
					if err != nil {
						t.Error(err)
						return
					}
					life, end := context.WithTimeout(ctx, 200*time.Millisecond+rand.N(time.Second))
					if err := r.Run(life); err != nil {
						t.Error(err)
					}
					end()
					if st := r.Stats(); st.LeaseLosses > 0 {
						t.Errorf("%+v", st)
					}
				}
			})
		}
		w.run(t, scaled(2000, 50_000))
		last, sum := w.last(t)
		await(t, live.all(sum))
		stop()
		relays.Wait()
		stopLive()
		end()
		if n := live.judge(t, "stops", last, w.rolledBack); n > 0 {
			t.Errorf("clean stops repeated %d messages", n)
		}
		if st, err := s.outbox.Status(t.Context(), s.db); err != nil || st.Pending != 0 || st.Relays != 0 {
			t.Errorf("%+v %v", st, err)
		}
	})
}
