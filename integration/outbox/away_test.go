package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/outbox"
)

// leaving is a driver with a broker that goes away and comes back as the test says.
type leaving struct {
	driver.Driver
	away atomic.Bool
}

// Publish implements driver.Driver.
func (d *leaving) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if !d.away.Load() {
		return d.Driver.Publish(ctx, topic, msgs)
	}
	errs := make([]error, len(msgs))
	for i := range errs {
		errs[i] = errUnknown
	}
	return &bus.PublishError{Errs: errs}
}

// TestWritersDoNotNotice: writers neither fail nor slow down while the broker is away, or while it
// refuses messages for ever. All other messages are sent in the end. At the whole size, real
// brokers are killed and stay away for a minute.
func TestWritersDoNotNotice(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		databases(t, func(t *testing.T, s *store) {
			inner := openBus(t, "memory:")
			d := &leaving{Driver: driver.Of(inner)}
			w := s.busy(t, inner, bus.New(d, bus.WithLogger(slog.New(slog.DiscardHandler))))
			var there, away phase
			for range 3 {
				there.add(w.during(500 * time.Millisecond))
				d.away.Store(true)
				away.add(w.during(500 * time.Millisecond))
				d.away.Store(false)
			}
			w.judge(t, there, away, 0) // half seconds on a machine that does other things too say nothing about speed
		})
	})
	for _, to := range []string{"kafka", "rabbitmq"} {
		t.Run(to, func(t *testing.T) {
			if !whole {
				t.Skip("only at the whole size: make torture")
			}
			databases(t, func(t *testing.T, s *store) {
				broker := killable(t, to)
				discard := bus.WithLogger(slog.New(slog.DiscardHandler))
				reads := openBus(t, broker.url, discard)
				url, _, _ := strings.Cut(broker.url, "?") // without the parameter by which Kafka's topics are created
				w := s.busy(t, reads, openBus(t, url, discard))
				there := w.during(30 * time.Second)
				broker.kill(t)
				away := w.during(time.Minute)
				for away.n < 20_000 && !t.Failed() {
					away.add(w.during(time.Second))
				}
				broker.start(t)
				w.judge(t, there, away, 0.9)
			})
		})
	}
}

// phase is how many transactions ended in some time, and how long they took together.
type phase struct {
	n    int64
	took time.Duration
}

func (p *phase) add(q phase) { p.n, p.took = p.n+q.n, p.took+q.took }

func (p phase) mean() time.Duration { return p.took / time.Duration(max(p.n, 1)) }

// busy is a service that writes all the time, and its relay.
type busy struct {
	store   *store
	relay   *outbox.Relay
	reading *reading
	bad     int

	n, took atomic.Int64 // transactions, and their time
	numbers [4]int       // of each writer's last message
	stop    func(t *testing.T)
}

// busy begins to write messages that a relay sends to the bus, where they are read.
func (s *store) busy(t *testing.T, reads, to *bus.Bus) *busy {
	t.Helper()
	w := &busy{store: s, reading: newReading()}
	topic := unique("away")
	stopReading := w.reading.run(t, reads, topic, unique("g"))
	var stopRelay func()
	w.relay, stopRelay = s.runRelay(t, to, outbox.RelayConfig{})
	table := s.own(t, "effect", "(writer INT, n INT)")
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for i := range w.numbers {
		wg.Go(func() {
			for ctx.Err() == nil {
				begun := time.Now()
				err := w.write(table, topic, i)
				w.took.Add(int64(time.Since(begun)))
				w.n.Add(1)
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(4 * time.Millisecond) // not all that the machine can do
			}
		})
	}
	w.stop = func(t *testing.T) {
		t.Helper()
		cancel()
		wg.Wait()
		sum := 0
		for _, n := range w.numbers {
			sum += n
		}
		await(t, w.reading.all(sum))
		counts(t, w.relay, func(s outbox.RelayStats) bool { return s.Parked+s.Poisoned >= int64(w.bad) })
		stopRelay()
		stopReading()
	}
	// Messages that no broker takes: a topic that is none, put there by a program that does not use
	// this package; on Kafka also a topic that is not there, and a message that is too large.
	w.bad++
	s.exec(t, "INSERT INTO "+s.table("outbox")+" (lane, created, time, topic, id, msg_key, type, source, subject, content_type) VALUES (1, 0, 0, 'no topic', 'bad', '', '', '', '', '')")
	if to.Driver().Capabilities().Broker == "kafka" {
		w.bad += 2
		s.publish(t, unique("missing"), &bus.Message{ID: "missing"})
		large := make([]byte, 3<<20)
		_, _ = rand.NewChaCha8([32]byte{}).Read(large) // so that it does not become small when it is compressed
		s.publish(t, topic, &bus.Message{ID: "large", Key: "large", Payload: large})
	}
	return w
}

// busyKeys is how many keys a writer has, each in its turn.
const busyKeys = 100

func busyKey(writer, n int) string { return fmt.Sprint(writer, "-", (n-1)%busyKeys) }

func (w *busy) write(table, topic string, i int) error {
	ctx := context.Background()
	n := w.numbers[i] + 1
	err := outbox.Do(ctx, w.store.outbox, outbox.SQL(w.store.db, nil), func(tx *sql.Tx, p bus.Publisher) error {
		_, err := tx.ExecContext(ctx, w.store.args("INSERT INTO "+table+" VALUES (?, ?)"), i, n)
		return errors.Join(err, p.PublishMessages(ctx, topic, &bus.Message{ID: fmt.Sprint(i, "-", n), Key: busyKey(i, n), Payload: []byte(strconv.Itoa((n-1)/busyKeys + 1))}))
	})
	if err == nil {
		w.numbers[i] = n
	}
	return err
}

// during waits, and returns the number and duration of the writes in that time.
func (w *busy) during(d time.Duration) phase {
	n, took := w.n.Load(), w.took.Load()
	time.Sleep(d)
	return phase{w.n.Load() - n, time.Duration(w.took.Load() - took)}
}

// judge ends it. Transactions while the broker was away may be slower by this factor than those
// before.
func (w *busy) judge(t *testing.T, there, away phase, factor float64) {
	t.Helper()
	w.stop(t)
	last := map[string]int{}
	for i, n := range w.numbers {
		for n := range n {
			last[busyKey(i, n+1)]++
		}
	}
	w.reading.judge(t, "read", last, nil)
	st := w.relay.Stats()
	t.Logf("%d transactions of %v with the broker, %d of %v without; %d messages sent, %d poisoned, %d parked", there.n, there.mean(), away.n, away.mean(), st.Sent, st.Poisoned, st.Parked)
	if float64(there.mean()) < factor*float64(away.mean()) {
		t.Errorf("writers slowed down from %v to %v", there.mean(), away.mean())
	}
	if st.Parked+st.Poisoned != int64(w.bad) {
		t.Errorf("%d messages were refused for good, want %d", st.Parked+st.Poisoned, w.bad)
	}
	if s, err := w.store.outbox.Status(context.Background(), w.store.db); err != nil || s.Pending != 0 || s.Parked != st.Parked {
		t.Errorf("%+v %v", s, err)
	}
}
