package outbox_test

import (
	"context"
	"database/sql"
	sqldriver "database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/outbox"
)

// silent is a bus on the faulty broker that logs nothing.
func silent(f *faulty) *bus.Bus { return bus.New(f, bus.WithLogger(slog.New(slog.DiscardHandler))) }

func (s *store) publishAll(t testing.TB, topic string, msgs ...*bus.Message) {
	t.Helper()
	if err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sql.Tx, p bus.Publisher) error {
		return p.PublishMessages(t.Context(), topic, msgs...)
	}); err != nil {
		t.Fatal(err)
	}
}

// TestTopicInTrouble: the broker refuses a topic with far more messages than a relay takes in hand,
// each in a lane of its own. It keeps no other topic waiting, is not asked for in vain, and goes on
// when it can.
func TestTopicInTrouble(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, _ := newFaulty(t)
		const n = 10_000
		var away atomic.Bool
		var asked atomic.Int64
		away.Store(true)
		f.judge = func(topic string, _ *bus.Message) error {
			if topic == "bad" {
				asked.Add(1)
				if away.Load() {
					return errAway
				}
			}
			return nil
		}
		msgs := make([]*bus.Message, n)
		for i := range msgs {
			msgs[i] = &bus.Message{ID: fmt.Sprint("bad", i)}
		}
		s.publishAll(t, "bad", msgs...)
		s.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
		s.publish(t, "good", &bus.Message{ID: "first", Key: "good"})
		f.await(t, 1)
		for i := range 50 { // for some time
			s.publish(t, "good", &bus.Message{ID: fmt.Sprint(i), Key: "good"})
			f.await(t, 2+i)
		}
		if in := asked.Load(); in > 2*n {
			t.Errorf("%d tries for a topic that takes none", in)
		}
		away.Store(false)
		f.await(t, 51+n)
	})
}

// TestManyKeysFail: most keys of a topic fail, more than a relay takes in hand, and the oldest. The
// others go on.
func TestManyKeysFail(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		f, _ := newFaulty(t)
		f.judge = func(_ string, m *bus.Message) error {
			if strings.HasPrefix(m.Key, "bad") {
				return errAway
			}
			return nil
		}
		var bad, good []*bus.Message
		for i := range 4500 {
			bad = append(bad, &bus.Message{ID: fmt.Sprint("b", i), Key: fmt.Sprint("bad", i)})
		}
		for i := range 300 {
			good = append(good, &bus.Message{ID: fmt.Sprint("g", i), Key: fmt.Sprint("good", i)})
		}
		s.publishAll(t, "t", append(bad, good...)...)
		s.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
		f.await(t, len(good))
		s.publish(t, "t", &bus.Message{ID: "late", Key: "good"})
		f.await(t, len(good)+1)
	})
}

// TestShareLostAndRegained: a relay that was taken for dead does not send its rows in hand any
// more, also when its buckets come back to it.
func TestShareLostAndRegained(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, b := newFaulty(t)
	entered, gate := make(chan struct{}), make(chan struct{})
	var once sync.Once
	f.judge = func(string, *bus.Message) error {
		once.Do(func() {
			close(entered)
			<-gate
		})
		return nil
	}
	var claims atomic.Int64
	judged := s.judged(t, func(_ context.Context, text string) error {
		if strings.HasPrefix(text, "SELECT seq, lane") {
			claims.Add(1)
		}
		return nil
	})
	s.publishAll(t, "t", numbered("a", 50)...)
	r, _ := judged.runRelay(t, b, outbox.RelayConfig{Poll: 10 * time.Millisecond, Lease: 2 * time.Second})
	<-entered // the first is on its way, the others are in hand
	tx, err := s.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{ // as another relay does, which then sends all and stops
		"DELETE FROM " + s.table("outbox_relay"),
		"UPDATE " + s.table("outbox_bucket") + " SET owner = 'another'",
		"DELETE FROM " + s.table("outbox"),
	} {
		if _, err := tx.ExecContext(t.Context(), text); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	counts(t, r, func(s outbox.RelayStats) bool { return s.LeaseLosses > 0 && s.Buckets == 64 })
	since := claims.Load()
	counts(t, r, func(outbox.RelayStats) bool { return claims.Load() >= since+2 })
	close(gate)
	s.publish(t, "t", &bus.Message{ID: "last", Key: "a"})
	if got := f.await(t, 2)["a"]; len(got) != 2 || got[1] != "last" {
		t.Errorf("published %q: what another relay had sent was sent again", got)
	}
}

// judging is a database with statements that wait and fail as a test wants.
type judging struct {
	of    sqldriver.Driver
	dsn   string
	judge func(ctx context.Context, text string) error
}

func (s *store) judged(t *testing.T, judge func(ctx context.Context, text string) error) *store {
	other := *s
	other.db = sql.OpenDB(&judging{s.db.Driver(), s.dsn, judge})
	t.Cleanup(func() { other.db.Close() })
	return &other
}

func (j *judging) Connect(context.Context) (sqldriver.Conn, error) {
	c, err := j.of.Open(j.dsn)
	return &judgedConn{c, j}, err
}

func (j *judging) Driver() sqldriver.Driver { return j.of }

type judgedConn struct {
	sqldriver.Conn
	of *judging
}

func (c *judgedConn) QueryContext(ctx context.Context, text string, args []sqldriver.NamedValue) (sqldriver.Rows, error) {
	if err := c.of.judge(ctx, text); err != nil {
		return nil, err
	}
	return c.Conn.(sqldriver.QueryerContext).QueryContext(ctx, text, args)
}

func (c *judgedConn) ExecContext(ctx context.Context, text string, args []sqldriver.NamedValue) (sqldriver.Result, error) {
	if err := c.of.judge(ctx, text); err != nil {
		return nil, err
	}
	return c.Conn.(sqldriver.ExecerContext).ExecContext(ctx, text, args)
}

func (c *judgedConn) BeginTx(ctx context.Context, o sqldriver.TxOptions) (sqldriver.Tx, error) {
	return c.Conn.(sqldriver.ConnBeginTx).BeginTx(ctx, o)
}

// TestClaimHangs: a connection that is dead without anybody being told does not keep the messages,
// while the relay's lease goes on by another connection.
func TestClaimHangs(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, _ := newFaulty(t)
	hung := make(chan struct{})
	var once sync.Once
	judged := s.judged(t, func(ctx context.Context, text string) (err error) {
		if strings.HasPrefix(text, "SELECT seq, lane") {
			once.Do(func() {
				close(hung)
				<-ctx.Done()
				err = ctx.Err()
			})
		}
		return err
	})
	s.publishAll(t, "t", numbered("a", 3)...)
	r, _ := judged.runRelay(t, silent(f), outbox.RelayConfig{Lease: 500 * time.Millisecond})
	<-hung
	f.await(t, 3)
	if st := r.Stats(); st.Failures == 0 || st.LeaseLosses > 0 {
		t.Errorf("%+v", st)
	}
}

// TestStartWithoutDatabase: a database that is away for a moment when a relay starts does not end
// it.
func TestStartWithoutDatabase(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, _ := newFaulty(t)
	var fails atomic.Int64
	fails.Store(3)
	judged := s.judged(t, func(context.Context, string) error {
		if fails.Add(-1) >= 0 {
			return errors.New("connection refused")
		}
		return nil
	})
	s.publish(t, "t", numbered("a", 1)...)
	judged.runRelay(t, silent(f), outbox.RelayConfig{})
	f.await(t, 1)
}

// TestForeignLane: other programs may insert any lane.
func TestForeignLane(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, b := newFaulty(t)
	s.exec(t, "INSERT INTO "+s.table("outbox")+" (lane, created, time, topic, id, msg_key, type, source, subject, content_type) VALUES (-5, 0, 0, 't', 'a', '', '', '', '', '')")
	s.runRelay(t, b, outbox.RelayConfig{})
	f.await(t, 1)
}

// TestPoisonedWhileStopping: a message poisoned while the relay stops is counted as poisoned.
func TestPoisonedWhileStopping(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, _ := newFaulty(t)
	f.judge = func(string, *bus.Message) error { return errRefused }
	putting, gate := make(chan struct{}), make(chan struct{})
	f.put = func(driver.PoisonEntry) error {
		close(putting)
		<-gate
		return nil
	}
	s.publish(t, "t", numbered("a", 1)...)
	r, err := s.outbox.NewRelay(s.db, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error)
	go func() { over <- r.Run(ctx) }()
	<-putting
	cancel()
	time.AfterFunc(100*time.Millisecond, func() { close(gate) }) // most likely after Run has begun to drain
	if err := <-over; err != nil {
		t.Error(err)
	}
	if st := r.Stats(); st.Sent != 0 || st.Poisoned != 1 {
		t.Errorf("%+v", st)
	}
}
