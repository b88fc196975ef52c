package main

import (
	"context"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/poison"
)

// orders runs the program and returns its exit code, report and messages.
func runOrders(ctx context.Context, url string, args ...string) (code int, stdout, stderr string) {
	var out, errs strings.Builder
	code = command(ctx, args, url, &out, &errs)
	return code, out.String(), errs.String()
}

func TestAllOrdersReconcile(t *testing.T) {
	if testing.Short() {
		t.Skip("the whole file takes a while under the race detector")
	}
	code, report, messages := runOrders(t.Context(), "memory:")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, messages)
	}
	for _, want := range []string{"69659   167881     2500315.63", "23570 customers; the busiest is 14048 with 217 orders", "69659 payments of 2500315.63 dollars", "everything reconciles"} {
		if !strings.Contains(report, want) {
			t.Errorf("the report lacks %q:\n%s", want, report)
		}
	}
}

func TestFailingHandlersChangeNothing(t *testing.T) {
	code, want, messages := runOrders(t.Context(), "memory:", "-n", "3000")
	if code != exitOK {
		t.Fatalf("exit %d: %s", code, messages)
	}
	code, got, messages := runOrders(t.Context(), "memory:", "-n", "3000", "-fail", "0.2", "-workers", "64")
	if code != exitOK || got != want {
		t.Errorf("exit %d: %s\ngot:\n%s\nwant:\n%s", code, messages, got, want)
	}
}

// TestRefusedOrdersAreReplayed: the customers' later orders wait, so that nothing is out of order
// in the end.
func TestRefusedOrdersAreReplayed(t *testing.T) {
	_, want, _ := runOrders(t.Context(), "memory:", "-n", "3000")
	sqlite := "sqlite:" + filepath.Join(t.TempDir(), "bus.db")
	for _, url := range []string{"memory:", sqlite} {
		code, got, messages := runOrders(t.Context(), url, "-n", "3000", "-poison", "0.05", "-state", t.TempDir())
		if code != exitOK || got != want || !strings.Contains(messages, "orders: loyalty refused 173 (permanent)") || !strings.Contains(messages, "orders: 173 were replayed") {
			t.Errorf("%s: exit %d: %s\ngot:\n%s\nwant:\n%s", url, code, messages, got, want)
		}
	}
	b, err := bus.Open(t.Context(), sqlite)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	q, err := poison.Open(t.Context(), b, "loyalty")
	if err != nil {
		t.Fatal(err)
	}
	if n, err := q.Count(t.Context(), poison.Filter{}); n != 0 || err != nil {
		t.Errorf("%d are left in the poison queue, %v", n, err)
	}
}

// TestInterruptedRunGoesOn stops a run on a durable bus several times; the report in the end is
// that of one run.
func TestInterruptedRunGoesOn(t *testing.T) {
	_, want, _ := runOrders(t.Context(), "memory:", "-n", "5000")
	dir := t.TempDir()
	url := "sqlite:" + filepath.Join(dir, "bus.db")
	args := []string{"-n", "5000", "-state", dir}
	interrupted := 0
	for {
		ctx, cancel := context.WithCancel(t.Context())
		orders, err := loadOrders(5000)
		if err != nil {
			t.Fatal(err)
		}
		before, _, err := loadState(statePath(dir, url), len(orders))
		if err != nil {
			t.Fatal(err)
		}
		if interrupted < 3 {
			// Wherever it is interrupted, nothing may be lost or counted twice.
			time.AfterFunc(150*time.Millisecond, cancel)
		}
		code, got, messages := runOrders(ctx, url, args...)
		cancel()
		switch code {
		case exitOK:
			if got != want {
				t.Errorf("after %d interruptions:\n%s\nwant:\n%s", interrupted, got, want)
			}
			return
		case exitInterrupted:
			interrupted++
			after, why, err := loadState(statePath(dir, url), len(orders))
			if err != nil || after == nil && before != nil {
				t.Fatalf("no state after an interruption: %q, %v", why, err)
			}
			if before != nil && (after.Run != before.Run || after.Published < before.Published) {
				t.Errorf("the run went back from %d to %d published orders", before.Published, after.Published)
			}
		default:
			t.Fatalf("exit %d: %s", code, messages)
		}
	}
}

func TestKilledRunStartsAfresh(t *testing.T) {
	dir := t.TempDir()
	s := &State{Run: "killed", Orders: 100, Published: 50, Books: newBooks()}
	if err := s.save(statePath(dir, "sqlite:"+filepath.Join(dir, "bus.db"))); err != nil {
		t.Fatal(err)
	}
	code, report, messages := runOrders(t.Context(), "sqlite:"+filepath.Join(dir, "bus.db"), "-n", "100", "-state", dir)
	if code != exitOK || !strings.Contains(messages, "did not end cleanly") || !strings.Contains(report, "everything reconciles") {
		t.Errorf("exit %d: %s\n%s", code, messages, report)
	}
}

func TestDifferencesAreFound(t *testing.T) {
	orders, err := loadOrders(10)
	if err != nil {
		t.Fatal(err)
	}
	books := newBooks()
	for _, o := range orders {
		_ = books.pay(t.Context(), PaymentRequested{o.Number, o.Customer, o.Cents})
		_ = books.sell(t.Context(), o)
		_ = books.credit(t.Context(), o)
		_ = books.credit(t.Context(), o) // a repeat
	}
	if diffs := books.differences(orders); len(diffs) > 0 {
		t.Errorf("all is well, but: %q", diffs)
	}
	_ = books.credit(t.Context(), OrderPlaced{Customer: orders[0].Customer, Nth: 3, Cents: 1})
	diffs := strings.Join(books.differences(orders), "; ")
	for _, want := range []string{"order 3 came after order 1", "cents in loyalty: "} {
		if !strings.Contains(diffs, want) {
			t.Errorf("%q lacks %q", diffs, want)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range [][]string{{"-n", "-1"}, {"-workers", "0"}, {"-fail", "1"}, {"-poison", "-1"}, {"-n", "99999999"}, {"-nonsense"}, {"extra"}} {
		if code, _, messages := runOrders(t.Context(), "memory:", args...); code != exitUsage || messages == "" {
			t.Errorf("%v: exit %d, %q", args, code, messages)
		}
	}
	if code, _, messages := runOrders(t.Context(), "memory:?typo=1"); code != exitWrong || !strings.Contains(messages, "typo") {
		t.Errorf("a wrong URL: exit %d, %q", code, messages)
	}
}

// TestOutbox: orders that are taken into a table and published from its outbox add up to the same,
// also after interruptions.
func TestOutbox(t *testing.T) {
	_, want, _ := runOrders(t.Context(), "memory:", "-n", "5000")
	dir := t.TempDir()
	args := []string{"-n", "5000", "-state", dir, "-outbox", filepath.Join(dir, "shop.db")}
	url := "sqlite:" + filepath.Join(dir, "bus.db")
	for interruptions := 0; ; interruptions++ {
		ctx, cancel := context.WithCancel(t.Context())
		if interruptions < 2 {
			time.AfterFunc(300*time.Millisecond, cancel)
		}
		code, got, messages := runOrders(ctx, url, args...)
		cancel()
		if code == exitInterrupted {
			continue
		}
		if code != exitOK || got != want {
			t.Errorf("exit %d: %s\n%s\nwant:\n%s", code, messages, got, want)
		}
		return
	}
}

// TestInterruptedAtOnce: a signal that comes while the shop is opened is not a failure.
func TestInterruptedAtOnce(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code, _, messages := runOrders(ctx, "memory:", "-outbox", filepath.Join(t.TempDir(), "shop.db"))
	if code != exitInterrupted {
		t.Errorf("exit %d: %s", code, messages)
	}
}

// TestOutboxEverywhere: table and events add up to the same on every database, whatever the broker.
func TestOutboxEverywhere(t *testing.T) {
	dir := t.TempDir()
	databases := []string{filepath.Join(dir, "shop.db"), ownDatabase(t, "postgres"), ownDatabase(t, "mysql")}
	brokers := []string{"memory:", "sqlite:" + filepath.Join(dir, "bus.db"), "sqlite:" + databases[0], brokertest.URL(t, "kafka"), brokertest.URL(t, "rabbitmq"), databases[1], databases[2]}
	for _, database := range databases {
		for _, broker := range brokers {
			code, report, messages := runOrders(t.Context(), broker, "-n", "1000", "-state", dir, "-outbox", database)
			if code != exitOK || !strings.Contains(report, "everything reconciles") {
				t.Errorf("from %s to %s: exit %d: %s\n%s", database, broker, code, messages, report)
			}
		}
	}
}

// ownDatabase is one on the server that goes with the test.
func ownDatabase(t *testing.T, server string) string {
	t.Helper()
	u, err := url.Parse(brokertest.URL(t, server))
	if err != nil {
		t.Fatal(err)
	}
	db, _, err := openDatabase(u.String())
	if err != nil {
		t.Fatal(err)
	}
	name := "orders_" + bus.NewID()[24:]
	if _, err := db.ExecContext(t.Context(), "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := db.ExecContext(context.Background(), "DROP DATABASE "+name); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	u.Path = "/" + name
	return u.String()
}
