package watermill_test

import (
	"context"
	"database/sql"
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/conformance"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// sharing opens a bus that shares its driver with Watermill services.
func sharing(ctx context.Context, url string) (*bus.Bus, error) {
	b, err := bus.Open(ctx, url)
	if err != nil {
		return nil, err
	}
	return bus.New(watermill.Shared(b.Driver())), nil
}

func openShared(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := sharing(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	return closing(t, b)
}

// TestSharedConformance: a bus shared with Watermill services keeps the contract. On SQLite, which
// has all abilities, it lacks none. The test leaves out checks that take long because of many
// messages, the check that looks at all goroutines of the process, and the check that needs somebody
// who writes past the driver.
func TestSharedConformance(t *testing.T) {
	few := slices.DeleteFunc(conformance.Checks(), func(check string) bool {
		return strings.HasPrefix(check, "load/") || check == "delay/many-keys" || check == "lifecycle/no-goroutine-left" || check == "poison/unreadable"
	})
	run := regexp.MustCompile("^(" + strings.Join(few, "|") + ")$")
	for _, n := range natives {
		if n.name != "sqlite" && n.name != "kafka" && n.name != "rabbitmq" {
			continue
		}
		t.Run(n.name, func(t *testing.T) {
			url := n.url(t)
			t.Parallel()
			open := func(ctx context.Context) (*bus.Bus, error) { return sharing(ctx, url) }
			for r := range conformance.Verify(t.Context(), open, conformance.Options{Run: run}) {
				if r.Status == conformance.Fail || r.Status == conformance.Lacking && n.name == "sqlite" {
					t.Errorf("%s: %s: %s", r.Test, r.Status, r.Detail)
				}
			}
		})
	}
}

// TestSharedAbilities: a shared driver has the abilities of the driver inside, and no others.
func TestSharedAbilities(t *testing.T) {
	for _, n := range natives {
		t.Run(n.name, func(t *testing.T) {
			plain := open(t, n.url(t))
			b := bus.New(watermill.Shared(plain.Driver()))
			same := func(ability string, want, got bool) {
				if want != got {
					t.Errorf("%s: the driver has it: %v, shared: %v", ability, want, got)
				}
			}
			same("Pinger", has[driver.Pinger](plain), has[driver.Pinger](b))
			same("Lagger", has[driver.Lagger](plain), has[driver.Lagger](b))
			same("Injector", has[driver.Injector](plain), has[driver.Injector](b))
			same("TransactionHost", has[driver.TransactionHost](plain), has[driver.TransactionHost](b))
			for _, transactional := range []bool{false, plain.Driver().Capabilities().Transactions} {
				source := func(b *bus.Bus) bus.Source {
					s, err := b.Driver().Subscribe(t.Context(), bus.Subscription{Topic: name("t"), Group: "g", InFlight: 1, Bytes: 1, Transactional: transactional}, quiet{})
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = s.Close(context.Background()) })
					return s
				}
				p, s := source(plain), source(b)
				same("ParkingSource", is[driver.ParkingSource](p), is[driver.ParkingSource](s))
				same("TransactionalSource", is[driver.TransactionalSource](p), is[driver.TransactionalSource](s))
				same("JoiningSource", is[driver.JoiningSource](p), is[driver.JoiningSource](s))
				if !is[driver.Committer](s) {
					t.Error("it cannot be told to make settlements durable")
				}
			}
		})
	}
}

func has[T any](b *bus.Bus) bool { _, ok := bus.As[T](b); return ok }

func is[T any](s bus.Source) bool { _, ok := s.(T); return ok }

type quiet struct{}

func (quiet) Assigned([]bus.Lane)                  {}
func (quiet) Revoking(context.Context, []bus.Lane) {}
func (quiet) Lost([]bus.Lane, error)               {}

// TestSharedTransactions: Watermill services can read messages that handlers emit in a transaction
// with their settlement.
func TestSharedTransactions(t *testing.T) {
	for _, how := range []string{"broker", "handler"} {
		t.Run(how, func(t *testing.T) {
			url := "sqlite:" + filepath.Join(t.TempDir(), "shared.db")
			b := openShared(t, url)
			topic, outputs := name("in"), name("out")
			emit := func(ctx context.Context) error {
				return bus.Emit(ctx, outputs, "output", bus.WithID("output"), bus.WithHeader("odd", "\xff"))
			}
			r := router.New(b, "g", router.Guarantee(router.ExactlyOnce))
			if how == "broker" {
				r.HandleFunc(topic, func(ctx context.Context, _ *bus.Message) error { return emit(ctx) })
			} else {
				db, err := sql.Open("sqlite", "file:"+strings.TrimPrefix(url, "sqlite:")+"?_txlock=immediate&_pragma=busy_timeout(20000)")
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				r.Handle(topic, outbox.OnceInBus(outbox.SQL(db, nil), func(ctx context.Context, _ *sql.Tx, _ string) error { return emit(ctx) }))
			}
			run(t, r)
			if err := b.Publish(t.Context(), topic, "input"); err != nil {
				t.Fatal(err)
			}
			got := make(chan bus.Message, 1)
			reader := router.New(open(t, url), "plain")
			reader.HandleFunc(outputs, func(_ context.Context, m *bus.Message) error {
				got <- *m
				return nil
			})
			run(t, reader)
			select {
			case m := <-got:
				if m.Headers.Get(watermill.UUIDHeader) != "output" || m.Headers.Get("odd") == "\xff" {
					t.Errorf("Watermill services see %+v", m)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("nothing was emitted")
			}
		})
	}
}

// TestSharedPoison: poisoned messages of a shared bus can be replayed and dropped while their key
// waits.
func TestSharedPoison(t *testing.T) {
	b := openShared(t, "memory:")
	topic := name("t")
	handled := make(chan string, 10)
	poisoned := make(hook, 10)
	r := router.New(b, "g", router.Policy{Retry: router.Never, KeyWaits: true}, router.Hooks(poisoned))
	r.HandleFunc(topic, func(ctx context.Context, m *bus.Message) error {
		if strings.HasPrefix(m.ID, "bad") && bus.DeliveryFrom(ctx).Failure == nil {
			return bus.Permanent(errors.New("refused"))
		}
		handled <- m.ID
		return nil
	})
	run(t, r)
	for _, m := range []bus.Message{{ID: "bad1", Key: "a"}, {ID: "behind1", Key: "a"}, {ID: "bad2", Key: "b"}, {ID: "behind2", Key: "b"}} {
		publish(t, b, topic, &m)
	}
	<-poisoned
	<-poisoned
	q, err := poison.Open(t.Context(), b, "g")
	if err != nil {
		t.Fatal(err)
	}
	if res, err := q.Replay(t.Context(), poison.Filter{Key: "a"}, poison.Options{}); err != nil || res.Done != 1 {
		t.Fatalf("replay: %+v %v", res, err)
	}
	if got := []string{<-handled, <-handled}; !slices.Equal(got, []string{"bad1", "behind1"}) {
		t.Errorf("handled %q", got)
	}
	if res, err := q.Drop(t.Context(), poison.Filter{Key: "b"}, poison.Options{}); err != nil || res.Done != 1 {
		t.Fatalf("drop: %+v %v", res, err)
	}
	if got := <-handled; got != "behind2" {
		t.Errorf("handled %s", got)
	}
}

type hook chan struct{}

// Poisoned implements part of the router's hooks.
func (h hook) Poisoned(context.Context, driver.PoisonEntry) { h <- struct{}{} }
