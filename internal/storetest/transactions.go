package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

func runTransactions(t *testing.T, p Place) {
	tests := map[string]func(*testing.T, Place){
		"InTransaction": inTransaction,
		"ExactlyOnce":   exactlyOnce,
	}
	if !p.Serial { // else nobody can append beside the transaction
		tests["LateCommit"], tests["BlockedStream"], tests["BlockedClose"] = lateCommit, blockedStream, blockedClose
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
}

func begin(t testing.TB, p Place) *sql.Tx {
	t.Helper()
	tx, err := p.DB.BeginTx(bounded(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() })
	return tx
}

func inTransaction(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	tx := begin(t, p)
	version, err := s.In(tx).Append(ctx, "a", eventstore.New, events(1, 3)...)
	if err != nil || version != 3 {
		t.Fatalf("version %d, %v", version, err)
	}
	if version, err = s.In(tx).Append(ctx, "a", eventstore.At(3), happened{4}); err != nil || version != 4 {
		t.Fatalf("version %d, %v", version, err)
	}
	if _, err = s.In(tx).Append(ctx, "b", eventstore.New, happened{1}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	dense(t, collect(t, s.All(ctx, 0)))
	same(t, "all", brief(collect(t, s.All(ctx, 0))), "a@1 a@2 a@3 a@4 b@1")

	tx = begin(t, p)
	if _, err := s.In(tx).Append(ctx, "a", eventstore.At(4), happened{5}); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	same(t, "after a rollback", mustAppend(t, s, "a", eventstore.At(4), happened{5}).Version, 5)
	for _, e := range []eventstore.Expected{eventstore.New, eventstore.At(4), eventstore.At(7)} {
		tx = begin(t, p)
		_, err := s.In(tx).Append(ctx, "a", e, events(1, 2)...)
		conflicts(t, err, -1)
		_ = tx.Rollback()
	}
	if err := s.CloseStream(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	tx = begin(t, p)
	if _, err := s.In(tx).Append(ctx, "b", eventstore.At(2), happened{1}); err == nil || !bus.IsDefinite(err) {
		t.Errorf("appended to a closed stream: %v", err)
	}
	_ = tx.Rollback()
	_, err = s.In(tx).Append(ctx, "c", eventstore.Any, happened{1})
	is(t, err, bus.ErrInvalid)
	same(t, "all", brief(collect(t, s.All(ctx, 0))), "a@1 a@2 a@3 a@4 b@1 a@5 b@2")
}

// lateCommit: an event that commits after later ones is not passed over.
func lateCommit(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	tx := begin(t, p)
	if _, err := s.In(tx).Append(ctx, "late", eventstore.New, happened{1}); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		mustAppend(t, s, fmt.Sprintf("s-%d", i), eventstore.New, happened{1})
	}
	same(t, "all before the commit", brief(collect(t, s.All(ctx, 0))), "")
	same(t, "a stream", brief(collect(t, s.Read(ctx, "s-3", 0))), "s-3@1")
	followed := make(chan string, 1)
	go func() {
		for e, err := range s.Follow(ctx, 0) {
			if err != nil {
				t.Error(err)
			}
			followed <- e.Stream
			return
		}
	}()
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	same(t, "the first", <-followed, "late")
	same(t, "all", len(collect(t, s.All(ctx, 0))), 21)
}

// blockedStream: a stream to which a user's transaction has appended holds up nobody else's, and
// the one who waits is told how it ended.
func blockedStream(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	tx := begin(t, p)
	if _, err := s.In(tx).Append(ctx, "s-3", eventstore.New, happened{1}); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error, 1)
	var wg sync.WaitGroup
	for i := range 10 {
		add := func() error {
			_, err := s.Append(ctx, fmt.Sprintf("s-%d", i), eventstore.New, happened{1})
			return err
		}
		if i == 3 {
			go func() { waits <- add() }()
			continue
		}
		wg.Go(func() {
			if err := add(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait() // while the transaction is open
	select {
	case err := <-waits:
		t.Errorf("it did not wait: %v", err)
	default:
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	conflicts(t, <-waits, 1)
	same(t, "all", len(collect(t, s.All(ctx, 0))), 10)
}

// blockedClose: a bus that is closed does not wait for the transaction of somebody else.
func blockedClose(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	tx := begin(t, p)
	if _, err := s.In(tx).Append(ctx, "held", eventstore.New, happened{1}); err != nil {
		t.Fatal(err)
	}
	waits := make(chan error)
	go func() {
		_, err := s.Append(ctx, "held", eventstore.New, happened{1})
		waits <- err
	}()
	for i := range 20 { // until it is under way, most likely
		mustAppend(t, s, "other", eventstore.At(int64(i)), happened{1})
	}
	if err := s.Bus().Close(); err != nil {
		t.Error(err)
	}
	if err := <-waits; err == nil || !bus.IsDefinite(err) {
		t.Errorf("the append of a bus that was closed: %v", err)
	}
}

// exactlyOnce: what handlers emit to a store is appended in the transaction that settles. What the
// store refuses holds up nobody.
func exactlyOnce(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	from := topic()
	mustAppend(t, s, "closed", eventstore.New, happened{1})
	if err := s.CloseStream(ctx, "closed"); err != nil {
		t.Fatal(err)
	}
	var msgs []*bus.Message
	for i := range 60 {
		key := fmt.Sprintf("s-%d", i%6)
		if i%20 == 7 {
			key = []string{"closed", "", "closed"}[i/20]
		}
		msgs = append(msgs, &bus.Message{Key: key, Type: "test", Payload: []byte("{}")})
	}
	if err := s.Bus().PublishMessages(ctx, from, msgs...); err != nil {
		t.Fatal(err)
	}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	r := router.New(s.Bus(), "emitter", router.Logger(testlog.New(t, "")))
	r.HandleFunc(from, func(ctx context.Context, m *bus.Message) error {
		return bus.Emit(ctx, s.Topic(), happened{1}, bus.WithKey(m.Key), bus.WithID(m.ID))
	}, router.Guarantee(router.ExactlyOnce))
	ended := make(chan error, 1)
	go func() { ended <- r.Run(run) }()
	lagger, ok := bus.As[driver.Lagger](s.Bus())
	if !ok {
		t.Fatal("no lag")
	}
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		if lag, err := lagger.Lag(ctx, from, "emitter"); err == nil && lag.Messages == 0 || ctx.Err() != nil {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	all := collect(t, s.All(ctx, 0))
	dense(t, all)
	same(t, "events", len(all), 57+2)
}

// Torture has 24 writers append to 20 streams of two stores for a while, a third of them in
// transactions of their own, half of which are rolled back, beside one transaction that is open all
// the time. What was acknowledged is there, and nothing else; versions are dense; those who follow
// the store see every event, in one order.
func Torture(t *testing.T, p Place, lasts time.Duration) {
	const writers, streams = 24, 20
	names := []string{topic(), topic()}
	ctx, cancel := context.WithTimeout(t.Context(), lasts+3*time.Minute)
	defer cancel()
	var stores [2][2]*eventstore.Store // by bus, by store
	for i := range stores {
		b := p.Open(t)
		for j, name := range names {
			s, err := eventstore.Open(ctx, b, name)
			if err != nil {
				t.Fatal(err)
			}
			stores[i][j] = s
		}
	}
	over := time.Now().Add(lasts)
	var acknowledged [2]atomic.Int64
	var unknown, conflicted, inTx, undone atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() { // one transaction after the other, each open for 200 ms after it has appended
		for i := 0; time.Now().Before(over); i++ {
			err := transact(ctx, p, func(tx *sql.Tx) error {
				_, err := stores[0][0].In(tx).Append(ctx, fmt.Sprintf("slow-%d", i), eventstore.New, happened{1})
				if err == nil {
					_, err = tx.ExecContext(ctx, p.Sleep)
				}
				if err == nil && i%3 == 0 {
					err = errUndo
				}
				return err
			})
			if err == nil {
				acknowledged[0].Add(1)
			} else if !errors.Is(err, errUndo) {
				t.Errorf("the slow transaction: %v", err)
			}
		}
	})
	for w := range writers {
		wg.Go(func() {
			for i := 0; time.Now().Before(over); i++ {
				j := rand.IntN(2)
				s, stream, n := stores[w%2][j], fmt.Sprintf("s-%d", rand.IntN(streams)), 1+rand.IntN(4)
				var err error
				switch w % 3 {
				case 0:
					_, err = s.Append(ctx, stream, eventstore.Any, events(0, n)...)
				case 1:
					var v int64
					if v, err = version(ctx, s, stream); err == nil {
						_, err = s.Append(ctx, stream, eventstore.At(v), events(0, n)...)
					}
				case 2:
					var v int64
					if v, err = version(ctx, s, stream); err != nil {
						break
					}
					inTx.Add(1)
					err = transact(ctx, p, func(tx *sql.Tx) error {
						_, err := s.In(tx).Append(ctx, stream, eventstore.At(v), events(0, n)...)
						if err == nil && i%2 == 0 {
							err = errUndo
						}
						return err
					})
				}
				var conflict *eventstore.Conflict
				switch {
				case err == nil:
					acknowledged[j].Add(int64(n))
				case errors.As(err, &conflict):
					conflicted.Add(1)
				case errors.Is(err, errUndo):
					undone.Add(1)
				default:
					unknown.Add(1)
					t.Errorf("writer %d: %v", w, err)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() {
		defer close(written)
		wg.Wait()
	}()
	// Each store is followed from the beginning, by both buses, while it is written.
	var followed [2][2]atomic.Int64
	var followers sync.WaitGroup
	stop, stopFollowing := context.WithCancel(ctx)
	defer stopFollowing()
	for i := range stores {
		for j, s := range stores[i] {
			followers.Go(func() {
				versions := map[string]int64{}
				var last eventstore.Position
				for e, err := range s.Follow(stop, 0) {
					if err != nil {
						if stop.Err() == nil {
							t.Error(err)
						}
						return
					}
					if versions[e.Stream]++; e.Position <= last || e.Version != versions[e.Stream] {
						t.Errorf("%s@%d at %d came after %d, as number %d of its stream", e.Stream, e.Version, e.Position, last, versions[e.Stream])
						return
					}
					last = e.Position
					followed[i][j].Add(1)
				}
			})
		}
	}
	<-written
	for j := range names {
		want := acknowledged[j].Load()
		all := collect(t, stores[0][j].All(ctx, 0))
		same(t, "events of "+names[j], int64(len(all)), want)
		dense(t, all)
		rows := int64(0)
		for _, info := range collect(t, stores[1][j].Streams(ctx, "")) {
			rows += info.Last
		}
		same(t, "versions of "+names[j], rows, want)
		for i := range stores {
			for tick := time.NewTicker(10 * time.Millisecond); followed[i][j].Load() < want && ctx.Err() == nil; <-tick.C {
			}
			same(t, "followed", followed[i][j].Load(), want)
		}
	}
	stopFollowing()
	followers.Wait()
	t.Logf("%d + %d events acknowledged, %d conflicts, %d transactions of which %d rolled back, %d unknown",
		acknowledged[0].Load(), acknowledged[1].Load(), conflicted.Load(), inTx.Load(), undone.Load(), unknown.Load())
}

var errUndo = errors.New("undo")

func version(ctx context.Context, s *eventstore.Store, stream string) (int64, error) {
	for e, err := range s.Back(ctx, stream) {
		return e.Version, err
	}
	return 0, nil
}

// transact runs f in a transaction of the user, again when the database says that it collided with
// another.
func transact(ctx context.Context, p Place, f func(tx *sql.Tx) error) error {
	for {
		tx, err := p.DB.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		if err = f(tx); err == nil {
			return tx.Commit()
		}
		_ = tx.Rollback()
		if e, ok := errors.AsType[*bus.Error](err); !ok || !e.Retryable {
			return err
		}
	}
}
