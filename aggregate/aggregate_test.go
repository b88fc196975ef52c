package aggregate_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/aggregate"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/account"
)

func nothing(account.State) ([]account.Event, error) { return nil, nil }

func open(t testing.TB, opts ...eventstore.Option) *eventstore.Store {
	t.Helper()
	b, err := memory.Open(memory.Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	s, err := eventstore.Open(t.Context(), b, "accounts", opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kinds are all ways to keep a state.
var kinds = map[string][]aggregate.Option{
	"plain":     nil,
	"cached":    {aggregate.Cached(10)},
	"snapshots": {aggregate.Snapshots(3, 1)},
	"both":      {aggregate.Cached(1), aggregate.Snapshots(1, 1)},
}

func each(t *testing.T, test func(t *testing.T, k *account.Kind)) {
	for name, opts := range kinds {
		t.Run(name, func(t *testing.T) { test(t, account.Define(opts...)) })
	}
}

func TestDo(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		r, ctx := k.In(open(t)), t.Context()
		account.Check(t, r, 0, 0)
		for i := range int64(4) { // each on what the one before made of the state
			done, err := r.Do(ctx, "7", account.Deposit(100), account.Withdraw(60), nothing, account.Withdraw(40))
			if err != nil || done.Version != 3*(i+1) || done.Position == 0 {
				t.Fatalf("%+v, %v", done, err)
			}
			account.Check(t, r, 0, 3*(i+1))
		}
		if _, err := r.Do(ctx, "7", account.Deposit(100), account.Withdraw(60), account.Withdraw(60)); err != account.ErrTooMuch {
			t.Errorf("error %v", err)
		}
		account.Check(t, r, 0, 12)
		if _, err := r.Do(ctx, "7", account.Withdraw(1)); !errors.Is(err, account.ErrTooMuch) {
			t.Errorf("after a refusal that had deposited 100: %v", err)
		}
		done, err := r.Do(ctx, "7", nothing)
		if err != nil || done.Version != 12 {
			t.Errorf("no events: %+v, %v", done, err)
		}
		if _, err := r.Do(ctx, "7"); err != nil {
			t.Error(err)
		}
		account.Check(t, r, 0, 12)
	})
}

func TestPanic(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		r, ctx := k.In(open(t)), t.Context()
		if _, err := r.Do(ctx, "7", account.Deposit(5)); err != nil {
			t.Fatal(err)
		}
		func() {
			defer func() {
				if p := fmt.Sprint(recover()); !strings.Contains(p, "oh no") || !strings.Contains(p, "aggregate_test.go") {
					t.Errorf("panic: %s", p)
				}
			}()
			_, _ = r.Do(ctx, "7", account.Deposit(100), func(account.State) ([]account.Event, error) { panic("oh no") })
			t.Error("no panic")
		}()
		if _, err := r.Do(ctx, "7", account.Withdraw(6)); !errors.Is(err, account.ErrTooMuch) {
			t.Errorf("error %v", err)
		}
		account.Check(t, r, 5, 1)
	})
}

// TestHot: commands of one process never conflict, also if some are refused, panic or leave.
func TestHot(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		s := open(t, eventstore.MaxEvents(20))
		r := k.In(s)
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				switch i % 8 {
				case 5:
					_, err := r.Do(ctx, "7", account.Deposit(1), account.Withdraw(1_000_000))
					if !errors.Is(err, account.ErrTooMuch) {
						t.Error(err)
					}
				case 6:
					defer func() {
						if recover() == nil {
							t.Error("no panic")
						}
					}()
					_, _ = r.Do(ctx, "7", account.Deposit(1), func(account.State) ([]account.Event, error) { panic("oh no") })
				case 7:
					cancel()
					if _, err := r.Do(ctx, "7", account.Deposit(1)); !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
				default:
					if _, err := r.Do(ctx, "7", account.Deposit(10), account.Withdraw(9)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		account.Check(t, r, 125, 250)
	})
}

// TestProcesses: two repositories are two processes: conflicts are decided again.
func TestProcesses(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		s := open(t)
		repositories := []*account.Repository{k.In(s), k.In(s)}
		if _, err := repositories[0].Do(t.Context(), "7", account.Deposit(100)); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		taken := 0
		for i := range 150 {
			wg.Go(func() {
				for {
					_, err := repositories[i%2].Do(t.Context(), "7", account.Withdraw(1))
					var conflict *eventstore.Conflict
					switch {
					case errors.As(err, &conflict): // tried often enough
						continue
					case err == nil:
						mu.Lock()
						defer mu.Unlock()
						taken++
					case !errors.Is(err, account.ErrTooMuch):
						t.Error(err)
					}
					return
				}
			})
		}
		wg.Wait()
		if taken != 100 {
			t.Errorf("%d cents were taken of 100", taken)
		}
		account.Check(t, repositories[1], 0, 101)
	})
}

func TestTries(t *testing.T) {
	s := open(t)
	r, other := account.Define(aggregate.Tries(3)).In(s), account.Define().In(s)
	tries := 0
	quicker := func(account.State) ([]account.Event, error) {
		tries++
		if _, err := other.Do(t.Context(), "7", account.Deposit(1)); err != nil {
			t.Error(err)
		}
		return []account.Event{account.Deposited{Cents: 1}}, nil
	}
	_, err := r.Do(t.Context(), "7", quicker)
	if c, ok := errors.AsType[*eventstore.Conflict](err); !ok || c.Actual != 3 || tries != 3 {
		t.Errorf("%v after %d tries", err, tries)
	}
	account.Check(t, r, 3, 3)
}

// TestStale: a state that is kept may be behind another process. What is decided on it without an
// append is decided again on the newest.
func TestStale(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		s, ctx := open(t), t.Context()
		r, other := k.In(s), k.In(s)
		if _, err := r.Do(ctx, "7", account.Deposit(10)); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Do(ctx, "7", account.Deposit(10)); err != nil {
			t.Fatal(err)
		}
		if done, err := r.Do(ctx, "7", nothing); err != nil || done.Version != 2 {
			t.Errorf("no events: %+v, %v", done, err)
		}
		if _, err := other.Do(ctx, "7", account.Deposit(10)); err != nil {
			t.Fatal(err)
		}
		if done, err := r.Do(ctx, "7", account.Withdraw(30)); err != nil || done.Version != 4 {
			t.Errorf("there is enough: %+v, %v", done, err)
		}
		if _, err := other.Do(ctx, "7", account.Deposit(1)); err != nil {
			t.Fatal(err)
		}
		careless := func(a account.State) ([]account.Event, error) {
			if a.Cents == 0 {
				panic("there is nothing")
			}
			return account.Withdraw(1)(a)
		}
		if done, err := r.Do(ctx, "7", careless); err != nil || done.Version != 6 {
			t.Errorf("there is something: %+v, %v", done, err)
		}
		account.Check(t, r, 0, 6)
	})
}

// TestUnstored: a refusal that follows from events whose append fails does not count.
func TestUnstored(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		synctest.Test(t, func(t *testing.T) {
			s, ctx := open(t), t.Context()
			r, other := k.In(s), k.In(s)
			if _, err := r.Do(ctx, "7", account.Deposit(100)); err != nil {
				t.Fatal(err)
			}
			gate, quicker := make(chan struct{}), sync.OnceFunc(func() {
				if _, err := other.Do(ctx, "7", account.Deposit(50)); err != nil {
					t.Error(err)
				}
			})
			var wg sync.WaitGroup
			for _, d := range []account.Decision{
				func(account.State) ([]account.Event, error) { <-gate; return nil, nil }, // the others are decided together
				func(a account.State) ([]account.Event, error) { quicker(); return account.Withdraw(100)(a) },
				account.Withdraw(50), // there is as much, but not on top of the first try
			} {
				wg.Go(func() {
					if _, err := r.Do(ctx, "7", d); err != nil {
						t.Error(err)
					}
				})
				synctest.Wait()
			}
			close(gate)
			wg.Wait()
			account.Check(t, r, 0, 4)
		})
	})
}

// TestTruncatedBehind: a kept state that is behind the removed events is loaded anew.
func TestTruncatedBehind(t *testing.T) {
	s, ctx := open(t), t.Context()
	k := account.Define(aggregate.Cached(1), aggregate.Snapshots(1, 1))
	r, other := k.In(s), k.In(s)
	if _, err := r.Do(ctx, "7", account.Deposit(1)); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := other.Do(ctx, "7", account.Deposit(1)); err != nil {
			t.Fatal(err)
		}
	}
	account.Check(t, r, 6, 6)
	var snap eventstore.Snapshot
	for snap.Version < 6 && ctx.Err() == nil { // it is stored after the caller has its answer
		var err error
		if snap, err = s.Snapshot(ctx, "account-7"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Truncate(ctx, "account-7", 6); err != nil {
		t.Fatal(err)
	}
	if done, err := r.Do(ctx, "7", account.Withdraw(6)); err != nil || done.Version != 7 {
		t.Errorf("%+v, %v", done, err)
	}
}

// noTransaction stands for a transaction that nothing reaches.
type noTransaction struct{ driver.Execer }

// TestClosed: commands of a closed stream fail, and do not conflict for ever.
func TestClosed(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		s, ctx := open(t), t.Context()
		r := k.In(s)
		if _, err := r.Do(ctx, "7", account.Deposit(1)); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseStream(ctx, "account-7"); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*account.Repository{r, r.In(noTransaction{})} {
			if _, err := r.Do(ctx, "7", account.Deposit(1)); !errors.Is(err, eventstore.ErrClosed) {
				t.Errorf("error %v", err)
			}
			if done, err := r.Do(ctx, "7", nothing); err != nil || done.Version != 2 {
				t.Errorf("%+v, %v", done, err)
			}
		}
		account.Check(t, r, 1, 2)
	})
}

func TestDoAt(t *testing.T) {
	each(t, func(t *testing.T, k *account.Kind) {
		s, ctx := open(t), t.Context()
		r, other := k.In(s), k.In(s)
		if done, err := r.DoAt(ctx, "7", 0, account.Deposit(5)); err != nil || done.Version != 1 {
			t.Fatalf("%+v, %v", done, err)
		}
		if _, err := other.DoAt(ctx, "7", 1, account.Deposit(5), account.Deposit(5)); err != nil {
			t.Fatal(err)
		}
		called := false
		_, err := r.DoAt(ctx, "7", 2, func(account.State) ([]account.Event, error) {
			called = true
			return nil, nil
		})
		if c, ok := errors.AsType[*eventstore.Conflict](err); !ok || c.Actual != 3 || c.Stream != "account-7" || called {
			t.Errorf("error %v, called %v", err, called)
		}
		if done, err := r.DoAt(ctx, "7", 3, account.Withdraw(15)); err != nil || done.Version != 4 {
			t.Errorf("%+v, %v", done, err)
		}
		if _, err := r.DoAt(ctx, "7", -1, nothing); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("error %v", err)
		}
		account.Check(t, r, 0, 4)
	})
}

// TestSnapshots: one that does not fit changes no result.
func TestSnapshots(t *testing.T) {
	s, ctx := open(t), t.Context()
	k := account.Define(aggregate.Snapshots(3, 2))
	r := k.In(s)
	for range 7 {
		if _, err := r.Do(ctx, "7", account.Deposit(1)); err != nil {
			t.Fatal(err)
		}
	}
	var snap eventstore.Snapshot
	for snap.Version != 6 && ctx.Err() == nil { // it is stored after the caller has its answer
		var err error
		if snap, err = s.Snapshot(ctx, "account-7"); err != nil {
			t.Fatal(err)
		}
	}
	if snap.Schema != 2 || snap.EventID == "" {
		t.Errorf("snapshot %+v", snap)
	}
	replace := func(snap eventstore.Snapshot) { // by way of another schema, whatever its version
		for _, snap := range []eventstore.Snapshot{{Schema: 99, Version: 1}, snap} {
			if err := s.SaveSnapshot(ctx, "account-7", snap); err != nil {
				t.Fatal(err)
			}
		}
	}
	fake := snap
	fake.State = []byte(`{"Cents":1000006}`) // it is used
	for _, tc := range []struct {
		name   string
		change func(*eventstore.Snapshot)
		cents  int64
	}{
		{"used", func(*eventstore.Snapshot) {}, 1_000_007},
		{"of another schema", func(s *eventstore.Snapshot) { s.Schema = 1 }, 7},
		{"cut off", func(s *eventstore.Snapshot) { s.State = s.State[:5] }, 7},
		{"ahead", func(s *eventstore.Snapshot) { s.Version = 20 }, 7},
		{"of another event", func(s *eventstore.Snapshot) { s.EventID = "x" }, 7},
		{"of another codec", func(s *eventstore.Snapshot) { s.ContentType = "x/y" }, 7},
	} {
		changed := fake
		tc.change(&changed)
		replace(changed)
		a, v, err := r.Load(ctx, "7")
		if err != nil || a.Cents != tc.cents || v != 7 {
			t.Errorf("%s: %d cents at version %d, %v", tc.name, a.Cents, v, err)
		}
	}
	// With a snapshot, what comes before it may go.
	replace(snap)
	if _, err := s.Truncate(ctx, "account-7", snap.Version); err != nil {
		t.Fatal(err)
	}
	account.Check(t, r, 7, 7)
	if _, _, err := account.Define().In(s).Load(ctx, "7"); !errors.Is(err, eventstore.ErrTruncated) {
		t.Errorf("without a snapshot: %v", err)
	}
}

func TestHistoryAndAs(t *testing.T) {
	s, ctx := open(t), t.Context()
	r := account.Define().In(s)
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	b := s.Bus()
	for i := range 5 {
		msgs, err := b.Encode(ctx, []any{account.Deposited{Cents: int64(i)}}, bus.WithTime(start.AddDate(0, 0, i)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Append(ctx, "account-7", eventstore.Any, msgs[0]); err != nil {
			t.Fatal(err)
		}
	}
	for days, cents := range map[int]int64{-1: 0, 0: 0, 2: 3, 3: 6, 100: 10} {
		a, v, err := r.As(ctx, "7", start.AddDate(0, 0, days))
		if err != nil || a.Cents != cents || v != int64(min(max(days+1, 0), 5)) {
			t.Errorf("after %d days: %d cents at version %d, %v", days, a.Cents, v, err)
		}
	}
	var cents []int64
	for e, err := range r.History(ctx, "7") {
		if err != nil {
			t.Fatal(err)
		}
		cents = append(cents, e.(account.Deposited).Cents)
	}
	if !slices.Equal(cents, []int64{0, 1, 2, 3, 4}) {
		t.Errorf("history %v", cents)
	}
	if _, err := s.Append(ctx, "account-7", eventstore.Any, &bus.Message{Type: "who knows"}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Do(ctx, "7", account.Deposit(1)); !errors.Is(err, eventstore.ErrUnknownType) {
		t.Errorf("with an event of an unknown type: %v", err)
	}
	for _, err := range r.History(ctx, "7") {
		if err != nil && !errors.Is(err, eventstore.ErrUnknownType) {
			t.Error(err)
		}
	}
}

// TestHeaders: events of commands that are appended together have the headers of their own calls.
func TestHeaders(t *testing.T) {
	s := open(t)
	r := account.Define(aggregate.Cached(1)).In(s)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			ctx := t.Context()
			if i%2 == 0 {
				ctx = bus.ContextWithHeaders(ctx, bus.Header{Name: "call", Value: fmt.Sprint(i)})
			}
			if _, err := r.Do(ctx, "7", account.Deposit(int64(i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for e, err := range s.Read(t.Context(), "account-7", 0) {
		var d account.Deposited
		if err == nil {
			err = e.Decode(&d)
		}
		call := ""
		if d.Cents%2 == 0 {
			call = fmt.Sprint(d.Cents)
		}
		if err != nil || e.Headers.Get("call") != call {
			t.Errorf("%d came with %v, %v", d.Cents, e.Headers, err)
		}
	}
}

type take struct {
	Account string
	Cents   int64
}

func (c take) EventKey() string                                { return c.Account }
func (c take) Decide(a account.State) ([]account.Event, error) { return account.Withdraw(c.Cents)(a) }

func handle(r *account.Repository) func(context.Context, take) (eventstore.Appended, error) {
	return aggregate.Handle[take](r)
}

func TestHandle(t *testing.T) {
	r := account.Define().In(open(t))
	if _, err := r.Do(t.Context(), "7", account.Deposit(5)); err != nil {
		t.Fatal(err)
	}
	if done, err := handle(r)(t.Context(), take{"7", 5}); err != nil || done.Version != 2 {
		t.Errorf("%+v, %v", done, err)
	}
	if _, err := handle(r)(t.Context(), take{"7", 5}); !errors.Is(err, account.ErrTooMuch) {
		t.Errorf("error %v", err)
	}
}

func TestCheck(t *testing.T) {
	s := open(t)
	for _, k := range []*account.Kind{
		aggregate.Define[account.State]("", account.Events),
		aggregate.Define[account.State]("account", (*eventstore.Types[account.Event])(nil)),
		aggregate.Define[account.State](strings.Repeat("a", 201), account.Events),
		account.Define(aggregate.Tries(0)), account.Define(aggregate.Cached(-1)), account.Define(aggregate.Snapshots(-1, 1)),
		aggregate.Define[account.State]("account", eventstore.TypesOf[account.Event](account.Deposited{}, account.Deposited{})),
	} {
		if err := k.Check(); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("error %v", err)
		}
		r := k.In(s)
		_, err := r.Do(t.Context(), "7", account.Deposit(1))
		_, _, loadErr := r.Load(t.Context(), "7")
		_, _, asErr := r.As(t.Context(), "7", time.Now())
		for _, err := range []error{err, loadErr, asErr} {
			if !errors.Is(err, bus.ErrInvalid) {
				t.Errorf("error %v", err)
			}
		}
	}
}
