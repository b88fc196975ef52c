package outbox_test

import (
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"go.uber.org/goleak"
	_ "modernc.org/sqlite"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox"
)

func TestMain(m *testing.M) {
	if os.Getenv(childMark) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(testlog.Strict(m))
}

// patience bounds a test's wait for events that should come in milliseconds.
const patience = 60 * time.Second

var names atomic.Int64

// unique makes names of topics, groups and tables of one test.
func unique(word string) string {
	return fmt.Sprintf("%s%d_%s", word, names.Add(1), bus.NewID()[24:])
}

// store is a database for one test.
type store struct {
	dialect outbox.Dialect
	driver  string
	dsn     string
	config  outbox.Config
	db      *sql.DB
	outbox  *outbox.Outbox
}

// table is a table of the test's own.
func (s *store) table(name string) string { return s.config.Prefix + name }

// arg is the n-th parameter of a statement.
func (s *store) args(text string) string {
	if s.dialect != outbox.Postgres {
		return text
	}
	for n := 1; strings.Contains(text, "?"); n++ {
		text = strings.Replace(text, "?", fmt.Sprint("$", n), 1)
	}
	return text
}

func (s *store) exec(t testing.TB, text string, args ...any) {
	t.Helper()
	if _, err := s.db.ExecContext(context.Background(), s.args(text), args...); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

func (s *store) count(t testing.TB, text string, args ...any) (n int) {
	t.Helper()
	if err := s.db.QueryRowContext(context.Background(), s.args(text), args...).Scan(&n); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return n
}

// databases runs a test on each database, with tables of its own.
func databases(t *testing.T, test func(t *testing.T, s *store)) {
	inDialects(t, []outbox.Dialect{outbox.SQLite, outbox.Postgres, outbox.MySQL}, test)
}

func inDialects(t *testing.T, dialects []outbox.Dialect, test func(t *testing.T, s *store)) {
	for _, d := range dialects {
		t.Run(d.String(), func(t *testing.T) {
			test(t, newStore(t, d))
		})
	}
}

func newStore(t testing.TB, d outbox.Dialect, opts ...bus.Option) *store {
	t.Helper()
	s := &store{dialect: d, config: outbox.Config{Prefix: strings.ToLower(unique("ob")) + "_"}}
	switch d {
	case outbox.Postgres:
		s.driver, s.dsn = "pgx", brokertest.URL(t, "postgres")
	case outbox.MySQL:
		s.driver, s.dsn = "mysql", brokertest.With(brokertest.MySQLDSN(brokertest.URL(t, "mysql")), "interpolateParams=true")
	case outbox.SQLite:
		s.driver = "sqlite"
		s.dsn = "file:" + filepath.Join(t.TempDir(), "test.db") + "?_txlock=immediate&_busy_timeout=20000&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)"
	}
	s.open(t, opts...)
	if err := s.outbox.Migrate(t.Context(), s.db); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.clean(t) })
	return s
}

func (s *store) open(t testing.TB, opts ...bus.Option) {
	t.Helper()
	var err error
	if s.db, err = sql.Open(s.driver, s.dsn); err != nil {
		t.Fatal(err)
	}
	s.db.SetMaxOpenConns(24)
	s.db.SetMaxIdleConns(24)
	if s.outbox, err = outbox.New(s.dialect, s.config, opts...); err != nil {
		t.Fatal(err)
	}
}

func (s *store) clean(t testing.TB) {
	defer s.db.Close()
	if s.dialect == outbox.SQLite {
		return
	}
	for _, table := range []string{"outbox", "outbox_relay", "outbox_bucket", "outbox_fence", "outbox_meta", "inbox"} {
		s.exec(t, "DROP TABLE IF EXISTS "+s.table(table))
	}
	if s.dialect == outbox.Postgres {
		s.exec(t, "DROP FUNCTION IF EXISTS "+s.table("outbox_next"))
		s.exec(t, "DROP SEQUENCE IF EXISTS "+s.table("outbox_seq"))
	}
}

// own creates a table of the test's own.
func (s *store) own(t testing.TB, name, columns string) string {
	t.Helper()
	name = s.table(name)
	s.exec(t, "CREATE TABLE "+name+" "+columns)
	t.Cleanup(func() { s.exec(t, "DROP TABLE "+name) })
	return name
}

// openBus opens a bus that ends with the test.
func openBus(t testing.TB, url string, opts ...bus.Option) *bus.Bus {
	t.Helper()
	b, err := bus.Open(t.Context(), url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return b
}

// runRelay runs a relay until stop is called, at the latest at the test's end.
func (s *store) runRelay(t testing.TB, b *bus.Bus, c outbox.RelayConfig) (*outbox.Relay, func()) {
	t.Helper()
	r, err := s.outbox.NewRelay(s.db, b, c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	stopped := false
	stop := func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-over; err != nil {
			t.Errorf("relay: %v", err)
		}
	}
	t.Cleanup(stop)
	return r, stop
}

// counts waits until a relay's counters say so. There is no event for it.
func counts(t testing.TB, r *outbox.Relay, holds func(s outbox.RelayStats) bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(r.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%+v", r.Stats())
		}
	}
}

// receive waits for n messages of a topic, repeats included, in a group of its own.
func receive(t testing.TB, b *bus.Bus, topic string, n int) []*bus.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := b.Driver().Subscribe(ctx, bus.Subscription{Topic: topic, Group: unique("g"), InFlight: 10_000, Bytes: 64 << 20}, quiet{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	var msgs []*bus.Message
	for len(msgs) < n {
		dst := make([]bus.Delivery, 1000)
		k, err := s.Receive(ctx, dst, 64<<20)
		if err != nil {
			t.Fatalf("%d of %d messages came: %v", len(msgs), n, err)
		}
		tokens := make([]bus.Token, k)
		for i := range k {
			msgs = append(msgs, dst[i].Message)
			tokens[i] = dst[i].Token
		}
		if err := s.Settle(ctx, tokens); err != nil {
			t.Fatal(err)
		}
	}
	return msgs
}

// quiet observes nothing.
type quiet struct{}

func (quiet) Assigned([]bus.Lane)                  {}
func (quiet) Revoking(context.Context, []bus.Lane) {}
func (quiet) Lost([]bus.Lane, error)               {}
