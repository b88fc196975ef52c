package sqltest

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// Ways in which a message has its effect exactly once.
const (
	inTheBus   = "handler's transaction"
	inBatches  = "handler's transaction of a batch"
	withOutput = "outputs only"
)

// shop is a service whose handlers add up cents in a table of the user's, and emit as many
// messages. Its processes are told its fields.
type shop struct {
	Way                 string
	URL, Table, In, Out string
	Numbered            bool // parameters are $1
	connect             func(url string) (*sql.DB, error)
}

// sale is a message that the shop handles.
type sale struct {
	Cents   int64
	Account int
}

const shopAccounts = 8

// handler is the shop's handler.
func (s *shop) handler(db *sql.DB) bus.Handler {
	add := "UPDATE " + s.Table + " SET cents = cents + ?, n = n + 1 WHERE id = ?"
	if s.Numbered {
		add = "UPDATE " + s.Table + " SET cents = cents + $1, n = n + 1 WHERE id = $2"
	}
	sell := func(ctx context.Context, tx *sql.Tx, e sale) error {
		if tx != nil {
			if _, err := tx.ExecContext(ctx, add, e.Cents, e.Account); err != nil {
				return err
			}
		}
		if err := bus.Emit(ctx, s.Out, e, bus.WithType("sold"), bus.WithKey(fmt.Sprint(e.Account))); err != nil {
			return err
		}
		if rand.N(8) == 0 {
			return errors.New("failed on purpose")
		}
		return nil
	}
	switch s.Way {
	case inTheBus:
		return outbox.OnceInBus(outbox.SQL(db, nil), sell)
	case inBatches:
		return outbox.OnceBatchInBus(outbox.SQL(db, nil), func(ctx context.Context, tx *sql.Tx, events []bus.Event[sale]) error {
			slices.SortFunc(events, func(a, b bus.Event[sale]) int { return a.Value.Account - b.Value.Account }) // rows are locked in one order
			for _, e := range events {
				if err := sell(ctx, tx, e.Value); err != nil {
					return err
				}
			}
			return nil
		})
	default:
		return bus.Typed(func(ctx context.Context, e sale) error { return sell(ctx, nil, e) })
	}
}

// run handles until ctx ends, and calls told at the end of each call with the number of its messages.
func (s *shop) run(ctx context.Context, told func(n int)) error {
	db, err := s.connect(s.URL)
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(12)
	db.SetMaxIdleConns(12)
	var log errorLog
	b, err := bus.Open(ctx, s.URL, bus.WithLogger(slog.New(&log)))
	if err != nil {
		return err
	}
	r := router.New(b, "g", router.Guarantee(router.ExactlyOnce), router.Workers(8), router.DrainTimeout(10*time.Second),
		router.Policy{Retry: router.Exponential(time.Millisecond, 20*time.Millisecond, 100_000)})
	r.Handle(s.In, s.handler(db), router.Use(bus.Around(func(ctx context.Context, c bus.Call) error {
		// At the call's end, which comes after the commit: a process killed at each call before it
		// can commit gets nowhere.
		err := bus.OnEnd(ctx, func(context.Context, func(*bus.Message) bool) error {
			told(c.Len())
			return nil
		})
		if err != nil {
			return err
		}
		return c.Next(ctx)
	})), router.Fill(20, 0))
	return errors.Join(r.Run(ctx), b.Close(), log.first())
}

// errorLog keeps the first record of level ERROR. Sums may be right although each call has failed; the log says so.
type errorLog struct {
	mu  sync.Mutex
	err error
}

func (l *errorLog) first() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Enabled implements slog.Handler.
func (l *errorLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelError }

// Handle implements slog.Handler.
func (l *errorLog) Handle(_ context.Context, r slog.Record) error {
	text := r.Message
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = fmt.Errorf("the log has an error: %s", text)
	}
	return nil
}

// WithAttrs implements slog.Handler.
func (l *errorLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler.
func (l *errorLog) WithGroup(string) slog.Handler { return l }

// ExactlyOnce has messages handled exactly once, in each way. Meanwhile handlers fail at random,
// members come and go, connections are cut, if there are any, and processes are killed.
func ExactlyOnce(t *testing.T, db Database, remote bool) {
	if testing.Short() {
		t.Skip("takes long")
	}
	for _, way := range []string{inTheBus, inBatches, withOutput} {
		t.Run(way, func(t *testing.T) {
			if remote {
				t.Run("cuts", func(t *testing.T) { cutShops(t, db, way) })
			}
			t.Run("kills", func(t *testing.T) { killedShops(t, db, way) })
		})
	}
}

// shop opens a shop with n sales, and returns their sum.
func (db Database) shop(t *testing.T, way string, n int) (s *shop, sum int64) {
	t.Helper()
	s = &shop{Way: way, URL: brokertest.With(db.URL, "lease=1s"), Table: "sales" + bus.NewID()[24:], In: Topic(), Out: Topic(), Numbered: strings.HasPrefix(db.URL, "postgres"), connect: db.Connect}
	db.exec(t, "CREATE TABLE "+s.Table+" (id INT NOT NULL PRIMARY KEY, cents BIGINT NOT NULL, n BIGINT NOT NULL)")
	t.Cleanup(func() {
		if _, err := db.DB.ExecContext(context.Background(), "DROP TABLE "+s.Table); err != nil {
			t.Error(err)
		}
	})
	for i := range shopAccounts {
		db.exec(t, fmt.Sprintf("INSERT INTO %s VALUES (%d, 0, 0)", s.Table, i))
	}
	msgs := make([]*bus.Message, n)
	for i := range msgs {
		e := sale{Cents: rand.Int64N(1000), Account: rand.N(shopAccounts)}
		sum += e.Cents
		payload, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		msgs[i] = &bus.Message{Key: fmt.Sprint(rand.N(60)), Payload: payload}
	}
	Publish(t, db.Open(t), s.In, msgs...)
	return s, sum
}

// await waits until all is handled. It looks by itself, because nobody tells it.
func (s *shop) await(t *testing.T, db Database, n int) (done bool) {
	t.Helper()
	lagger, _ := bus.As[driver.Lagger](db.Open(t))
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	parked := "SELECT COUNT(*) FROM " + db.Prefix + "parked WHERE pos > 0 AND grp = " + fmt.Sprint(db.groupID(t, s.In))
	for {
		left, err := lagger.Lag(ctx, s.In, "g")
		if err == nil && left.Messages == 0 && db.number(t, parked) == 0 {
			return true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Errorf("of %d messages %d are left, and %d are parked: %v", n, left.Messages, db.number(t, parked), err)
			return false
		}
	}
}

// judge compares the sales with the table and with the outputs.
func (s *shop) judge(t *testing.T, db Database, n int, sum int64) {
	t.Helper()
	if s.Way != withOutput {
		if got := db.number(t, "SELECT SUM(cents) FROM "+s.Table); got != sum {
			t.Errorf("the sum is %d, want %d", got, sum)
		}
		if got := db.number(t, "SELECT SUM(n) FROM "+s.Table); got != int64(n) {
			t.Errorf("%d effects, want %d", got, n)
		}
	}
	b := db.Open(t)
	Publish(t, b, s.Out, &bus.Message{Type: "end"}) // behind all others in one order of the topic
	source := Subscribe(t, b, s.Out, "g", bus.Earliest, NewObserver())
	defer Close(t, source)
	outputs, cents, ended := 0, int64(0), false
	for !ended || outputs < n {
		for _, d := range Receive(t, source, 1) {
			if d.Type == "end" {
				ended = true
				continue
			}
			var e sale
			if err := json.Unmarshal(d.Payload, &e); err != nil {
				t.Fatal(err)
			}
			outputs, cents = outputs+1, cents+e.Cents
		}
	}
	rows := db.number(t, "SELECT COUNT(*) FROM "+db.logOf(t, s.Out)+" WHERE "+db.ofTopic(t, s.Out)+" AND type = 'sold'")
	if rows != int64(n) || outputs != n || cents != sum {
		t.Errorf("%d outputs of %d cents came, %d are there; want %d of %d", outputs, cents, rows, n, sum)
	}
}

// cutShops: two members run on connections that are cut, those of the handlers' transactions too,
// and a third member comes and goes.
func cutShops(t *testing.T, db Database, way string) {
	const n = 1500
	s, sum := db.shop(t, way, n)
	behind, proxy := db.through(t)
	through := *s
	through.URL = brokertest.With(behind.URL, "lease=1s")
	var calls atomic.Int64
	progress := make(chan struct{}, 1)
	told := func(n int) {
		if calls.Add(int64(n))%40 < int64(n) {
			select {
			case progress <- struct{}{}:
			default:
			}
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	over := make(chan error, 3)
	for range 2 {
		go func() { over <- through.run(ctx, told) }()
	}
	cuts := 0
	for moves := 0; moves < 3; moves++ {
		passing, leave := context.WithCancel(ctx)
		go func() { over <- through.run(passing, told) }()
		for range 4 {
			select {
			case <-progress:
				proxy.Cut()
				cuts++
			case <-time.After(time.Second): // all may be done
			}
		}
		leave()
		t.Log("it left over connections that are cut:", <-over)
	}
	done := s.await(t, db, n)
	stop()
	for range 2 {
		if err := <-over; err != nil {
			t.Log("a member ended with:", err)
		}
	}
	if !done {
		return
	}
	t.Logf("%d cuts, %d deliveries of %d messages", cuts, calls.Load(), n)
	s.judge(t, db, n, sum)
}

// killedShops: two processes that are killed again and again.
func killedShops(t *testing.T, db Database, way string) {
	n, kills := 1200, 6
	// one writer at a time; waiting writers look now and then
	if strings.HasPrefix(db.URL, "sqlite") {
		n = 300
	}
	s, sum := db.shop(t, way, n)
	config, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	killed := make(chan struct{})
	finish := make(chan struct{})
	gone := make(chan struct{}, 2)
	for range 2 {
		go func() {
			defer func() { gone <- struct{}{} }()
			for {
				cmd := exec.Command(os.Args[0], "-test.run=^$")
				cmd.Env = append(os.Environ(), childShop+"="+string(config))
				cmd.Stderr = t.Output()
				out, err := cmd.StdoutPipe()
				if err == nil {
					err = cmd.Start()
				}
				if err != nil {
					t.Error(err)
					return
				}
				last := false
				calls := make(chan struct{})
				go func() {
					defer close(calls)
					b := make([]byte, 1)
					for range 5 + rand.N(n/(2*kills)) { // a byte for each message
						if _, err := out.Read(b); err != nil {
							return
						}
					}
				}()
				select {
				case <-calls:
				case <-finish:
					last = true
				}
				if t.Failed() {
					_ = cmd.Process.Signal(syscall.SIGQUIT) // it prints its goroutines
				} else {
					_ = cmd.Process.Kill() // it may have failed by itself
				}
				<-calls
				_ = cmd.Wait()
				if last {
					return
				}
				select {
				case killed <- struct{}{}:
				case <-finish:
					return
				}
			}
		}()
	}
	for range kills {
		select {
		case <-killed:
		case <-time.After(patience):
			t.Error("the processes do not get on")
		}
	}
	go func() {
		for {
			select {
			case <-killed:
			case <-finish:
				return
			}
		}
	}()
	done := s.await(t, db, n)
	close(finish)
	<-gone
	<-gone
	if !done {
		return
	}
	s.judge(t, db, n, sum)
}

const childShop = "MILLRACE_TEST_CHILD_SHOP"

// shopChild is a process of killedShops.
func shopChild(config string, connect func(url string) (*sql.DB, error)) error {
	s := shop{connect: connect}
	if err := json.Unmarshal([]byte(config), &s); err != nil {
		return err
	}
	return s.run(context.Background(), func(n int) { _, _ = os.Stdout.Write(make([]byte, n)) })
}
