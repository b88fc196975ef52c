package main

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

func TestRelayAndOutbox(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	url := "sqlite:" + path
	call := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var o, e strings.Builder
		if code := run(t.Context(), args, &o, &e); code != want {
			t.Fatalf("millrace %v: exit %d, want %d\n%s%s", args, code, want, o.String(), e.String())
		}
		return o.String(), e.String()
	}
	if _, text := call(exitUsage, "outbox", "status", "--url", url); !strings.Contains(text, "no such file") {
		t.Error(text)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, text := call(exitFail, "relay", "--from", url, "--to", "memory:"); !strings.Contains(text, "call Migrate") {
		t.Error(text)
	}
	call(exitOK, "outbox", "migrate", "--url", url)
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	o, err := outbox.New(outbox.SQLite, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	err = outbox.Do(t.Context(), o, outbox.SQL(db, nil), func(_ *sql.Tx, p bus.Publisher) error {
		return p.Publish(t.Context(), "orders", map[string]int{"id": 7})
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := call(exitOK, "outbox", "status", "--url", url); !strings.Contains(text, "pending  1,") {
		t.Error(text)
	}
	if text, _ := call(exitOK, "outbox", "status", "--json", "--url", url); !strings.Contains(text, `"pending":1`) {
		t.Error(text)
	}
	b, err := bus.Open(t.Context(), "memory:relay-test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, stop := context.WithCancel(t.Context())
	r := router.New(b, "g")
	came := make(chan map[string]int, 1)
	router.On(r, "orders", func(_ context.Context, e map[string]int) error { came <- e; return nil })
	over := make(chan error)
	go func() { over <- r.Run(ctx) }()
	var stderr strings.Builder
	exit := make(chan int)
	go func() { exit <- run(ctx, []string{"relay", "--from", url, "--to", "memory:relay-test"}, nil, &stderr) }()
	if e := <-came; e["id"] != 7 {
		t.Error(e)
	}
	stop()
	if code := <-exit; code != exitOK || !strings.Contains(stderr.String(), "sent=1") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if text, _ := call(exitOK, "outbox", "status", "--url", url); !strings.Contains(text, "pending  0,") {
		t.Error(text)
	}
}

// refusing is a memory bus that takes no message for its topics.
type refusing struct{ driver.Driver }

func (refusing) Publish(context.Context, string, []*bus.Message) error {
	return &bus.Error{Op: "publish", Err: bus.ErrTooLarge, Definite: true}
}

func init() {
	driver.Register("refusing", func(_ context.Context, p *driver.Params) (driver.Driver, error) {
		b, err := memory.Open(memory.Config{Name: p.URL().Opaque})
		if err != nil {
			return nil, err
		}
		return refusing{driver.Of(b)}, p.Err()
	})
}

// TestOutboxRetry brings back the messages parked in the table, and with a broker also those in its
// poison store.
func TestOutboxRetry(t *testing.T) {
	s := newShop(t)
	name := bus.NewID()
	b, err := bus.Open(t.Context(), "memory:"+name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() }) // after the router
	for _, id := range []string{"parked", "poisoned"} {
		s.publish(t, id)
	}
	if _, err := s.db.ExecContext(t.Context(), "UPDATE millrace_outbox SET parked = 'too large' WHERE id = 'parked'"); err != nil {
		t.Fatal(err)
	}
	store, err := driver.Of(b).Poison(t.Context(), outbox.PoisonGroup)
	if err != nil {
		t.Fatal(err)
	}
	poisoned := func() (n int) {
		t.Helper()
		for _, err := range store.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			n++
		}
		return n
	}
	stop := s.relay(t, "refusing:"+name)
	// The relay is another program: the table is all that tells.
	for end := time.Now().Add(time.Minute); poisoned() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nothing was poisoned")
		}
	}
	stop()
	for _, tc := range []struct{ args, stdout string }{
		{"outbox status", "pending  0, the oldest for 0s\nparked   1\nrelays   0\ninbox    0 ids\n"},
		{"outbox retry", "1 messages go out again\n"},
		{"outbox retry", "0 messages go out again\n"},
		{"outbox retry --broker memory:" + name, "1 messages go out again\n"},
		{"outbox retry --broker memory:" + name, "0 messages go out again\n"},
	} {
		if text := s.call(t, tc.args); text != tc.stdout {
			t.Errorf("%s: %s", tc.args, text)
		}
	}
	if n := poisoned(); n > 0 {
		t.Errorf("%d entries are poisoned still", n)
	}
	came := make(chan string, 10)
	r := router.New(b, "g", router.Workers(1))
	r.HandleFunc("orders", func(_ context.Context, m *bus.Message) error { came <- m.ID; return nil })
	bustest.Run(t, r)
	s.relay(t, "memory:"+name)
	var got []string
	for range 2 {
		select {
		case id := <-came:
			got = append(got, id)
		case <-time.After(10 * time.Second):
			t.Fatalf("only %v came", got)
		}
	}
	slices.Sort(got)
	if !slices.Equal(got, []string{"parked", "poisoned"}) {
		t.Error(got)
	}
}

// TestOutboxPrune forgets the ids older than its flag says.
func TestOutboxPrune(t *testing.T) {
	s := newShop(t)
	b := bustest.New(t)
	h := outbox.Once(s.outbox, outbox.SQL(s.db, nil), func(context.Context, *sql.Tx, map[string]int) error { return nil })
	for _, id := range []string{"old", "older", "new"} {
		m := &bus.Message{ID: id, Payload: []byte("{}")}
		if err := h.Handle(engine.New(t.Context(), b, bus.Delivery{Message: m, Topic: "orders", Group: "billing"}), m); err != nil {
			t.Fatal(err)
		}
	}
	for id, age := range map[string]time.Duration{"old": time.Hour, "older": 9 * 24 * time.Hour} {
		if _, err := s.db.ExecContext(t.Context(), "UPDATE millrace_inbox SET at = at - ? WHERE id = ?", age.Microseconds(), id); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ args, stdout string }{
		{"outbox prune", "1 handled ids forgotten\n"},
		{"outbox prune --retention 2h", "0 handled ids forgotten\n"},
		{"outbox prune --retention 10m", "1 handled ids forgotten\n"},
	} {
		if text := s.call(t, tc.args); text != tc.stdout {
			t.Errorf("%s: %s", tc.args, text)
		}
	}
	var left string
	if err := s.db.QueryRowContext(t.Context(), "SELECT group_concat(id) FROM millrace_inbox").Scan(&left); err != nil || left != "new" {
		t.Errorf("left: %s %v", left, err)
	}
}

// shop is a database file with an outbox in it.
type shop struct {
	url    string
	db     *sql.DB
	outbox *outbox.Outbox
}

func newShop(t *testing.T) *shop {
	t.Helper()
	path := filepath.Join(t.TempDir(), "shop.db")
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	o, err := outbox.New(outbox.SQLite, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := o.Migrate(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	return &shop{"sqlite:" + path, db, o}
}

func (s *shop) publish(t *testing.T, id string) {
	t.Helper()
	if err := outbox.Do(t.Context(), s.outbox, outbox.SQL(s.db, nil), func(_ *sql.Tx, p bus.Publisher) error {
		return p.Publish(t.Context(), "orders", map[string]int{"id": 7}, bus.WithID(id))
	}); err != nil {
		t.Fatal(err)
	}
}

// call runs the program, which must succeed.
func (s *shop) call(t *testing.T, args string) string {
	t.Helper()
	var stdout, stderr strings.Builder
	if code := run(t.Context(), append(strings.Fields(args), "--url", s.url), &stdout, &stderr); code != exitOK {
		t.Fatalf("millrace %s: exit %d\n%s%s", args, code, stdout.String(), stderr.String())
	}
	return stdout.String()
}

// relay runs the program's relay until stop is called, at the latest at the test's end.
func (s *shop) relay(t *testing.T, to string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	exit := make(chan int, 1)
	var stderr strings.Builder
	go func() {
		exit <- run(ctx, []string{"relay", "--from", s.url, "--to", to, "--poll", "10ms"}, nil, &stderr)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		if code := <-exit; code != exitOK {
			t.Errorf("relay: exit %d\n%s", code, stderr.String())
		}
	})
	t.Cleanup(stop)
	return stop
}

func TestOutboxUsage(t *testing.T) {
	for _, tc := range []struct{ args, stderr string }{
		{"outbox", "usage: millrace outbox"},
		{"outbox nonsense", `unknown action "nonsense"`},
		{"outbox nonsense", "migrate"},
		{"outbox status", "--url is missing"},
		{"outbox status --url kafka://x", `the scheme is "kafka": want postgres, mysql, mariadb or sqlite`},
		{"outbox status --url mysql://u:secret@/", "want mysql://user:password@host:3306/database"},
		{"outbox status --url postgres://u:secret@127.0.0.1:1/d", "u:xxxxx@127.0.0.1:1"},
		{"relay --to memory:", "--from is missing"},
	} {
		var stdout, stderr strings.Builder
		code := run(t.Context(), strings.Fields(tc.args), &stdout, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), tc.stderr) || strings.Contains(stderr.String(), "secret") {
			t.Errorf("millrace %s: exit %d\n%s", tc.args, code, stderr.String())
		}
	}
}
