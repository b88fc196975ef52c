// Package sqltest tests an SQL driver: the common parts of the dialects, once. Each dialect calls
// Run with a database.
package sqltest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
)

// Database is the database that the tests run on.
type Database struct {
	// URL opens it. It has no parameters that all SQL drivers have.
	URL string
	// Prefix precedes the tables' names.
	Prefix string
	// DB reaches it behind the driver's back.
	DB *sql.DB
	// Connect opens a pool for a user's transactions, at the URL of a bus.
	Connect func(url string) (*sql.DB, error)
}

// Run runs all tests.
func Run(t *testing.T, db Database) {
	for name, test := range map[string]func(*testing.T, Database){
		"RoundTrip":                 roundTrip,
		"ForeignRow":                foreignRow,
		"ResumeAtTheWindow":         resumeAtTheWindow,
		"StartPositions":            startPositions,
		"ReceiveBounds":             receiveBounds,
		"SettleErrors":              settleErrors,
		"Shares":                    shares,
		"HandOverKeepsOrder":        handOverKeepsOrder,
		"RevokedIsSettled":          revokedIsSettled,
		"StaleOwner":                staleOwner,
		"DeletedMember":             deletedMember,
		"KilledProcess":             killedProcess,
		"ManyPublishers":            manyPublishers,
		"PublishAfterContextEnds":   publishAfterContextEnds,
		"LargeCall":                 largeCall,
		"Lag":                       lag,
		"Poison":                    poison,
		"Close":                     closing,
		"OtherTopicsShardsAreKept":  shardsAreKept,
		"TopicsAndGroupsStayApart":  stayApart,
		"ConcurrentFirstSubscribes": firstSubscribes,
		"SettlesWith":               settlesWith,
		"TransactionOfAStaleOwner":  transactionOfAStaleOwner,
		"ParksInTransactions":       parksInTransactions,
		"ForeignTransactions":       settlesInForeignTransactions,
		"ForeignTransactionStale":   foreignTransactionOfAStaleOwner,
		"ManyForeignTransactions":   manyForeignTransactions,
		"ChecksTransactions":        checksTransactions,
		"FetchesAtOnce":             fetchesAtOnce,
		"Scattered":                 scattered,
		"Ways":                      ways,
		"ParksEach":                 parksEach,
		"InjectsByID":               injectsByID,
		"ParksBehindChange":         parksBehindChange,
		"ParksWhileInjecting":       parksWhileInjecting,
		"Unreadable":                unreadable,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, db)
		})
	}
}

// patience is how long a test waits for an event that should come in milliseconds.
const patience = 30 * time.Second

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// Open opens a bus with more parameters, such as "lease=1s".
func (db Database) Open(t testing.TB, params ...string) *bus.Bus {
	t.Helper()
	b, err := db.open(params...)
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

func (db Database) open(params ...string) (*bus.Bus, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return bus.Open(ctx, brokertest.With(db.URL, params...))
}

var names atomic.Int64

// Topic returns a new topic's name.
func Topic() string { return fmt.Sprintf("t%d-%s", names.Add(1), bus.NewID()[24:]) }

// Observer records the calls it gets and answers them.
type Observer struct {
	Events chan string // "assigned 1:7 2:3", "revoking …", "lost …"
	// OnRevoking is called in Revoking.
	OnRevoking func(ctx context.Context, lanes []bus.Lane)

	mu    sync.Mutex
	owned map[bus.Lane]bool
}

// NewObserver returns an observer.
func NewObserver() *Observer {
	return &Observer{Events: make(chan string, 1000), owned: map[bus.Lane]bool{}}
}

func (o *Observer) note(what string, lanes []bus.Lane, owned bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, l := range lanes {
		if owned {
			o.owned[l] = true
		} else {
			delete(o.owned, l)
		}
		what += fmt.Sprintf(" %d:%d", l.ID, l.Epoch)
	}
	o.Events <- what
}

// Assigned implements bus.LaneObserver.
func (o *Observer) Assigned(lanes []bus.Lane) { o.note("assigned", lanes, true) }

// Revoking implements bus.LaneObserver.
func (o *Observer) Revoking(ctx context.Context, lanes []bus.Lane) {
	if o.OnRevoking != nil {
		o.OnRevoking(ctx, lanes)
	}
	o.note("revoking", lanes, false)
}

// Lost implements bus.LaneObserver.
func (o *Observer) Lost(lanes []bus.Lane, _ error) { o.note("lost", lanes, false) }

// Owns says whether the delivery's lane is held.
func (o *Observer) Owns(d *bus.Delivery) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.owned[bus.Lane{ID: d.Lane, Epoch: d.Epoch}]
}

// Count returns how many lanes are held.
func (o *Observer) Count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.owned)
}

// Await waits until n lanes are held.
func (o *Observer) Await(t testing.TB, n int) {
	t.Helper()
	timeout := time.After(patience)
	for o.Count() != n {
		select {
		case <-o.Events:
		case <-timeout:
			t.Fatalf("%d lanes are held, want %d", o.Count(), n)
		}
	}
}

// Subscribe subscribes with bounds that do not matter.
func Subscribe(t testing.TB, b *bus.Bus, topic, group string, start bus.Start, o bus.LaneObserver) bus.Source {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := b.Driver().Subscribe(ctx, bus.Subscription{Topic: topic, Group: group, Start: start, InFlight: 1000, Bytes: 1 << 20}, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Publish publishes messages, which must succeed.
func Publish(t testing.TB, b *bus.Bus, topic string, msgs ...*bus.Message) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := b.PublishMessages(ctx, topic, msgs...); err != nil {
		t.Fatal(err)
	}
}

// Texts makes messages with these payloads and keys.
func Texts(texts ...string) []*bus.Message {
	msgs := make([]*bus.Message, len(texts))
	for i, text := range texts {
		msgs[i] = &bus.Message{Key: text, Payload: []byte(text)}
	}
	return msgs
}

// Receive receives n messages.
func Receive(t testing.TB, s bus.Source, n int) []bus.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var all []bus.Delivery
	buf := make([]bus.Delivery, n)
	for len(all) < n {
		k, err := s.Receive(ctx, buf[:n-len(all)], 1<<30)
		if err != nil {
			t.Fatalf("received %d of %d: %v", len(all), n, err)
		}
		all = append(all, buf[:k]...)
	}
	return all
}

// Nothing checks that nothing comes: that a message published now is the first to be received. It settles it.
func Nothing(t testing.TB, b *bus.Bus, topic string, s bus.Source) {
	t.Helper()
	Publish(t, b, topic, Texts("marker")...)
	d := Receive(t, s, 1)
	if got := string(d[0].Payload); got != "marker" {
		t.Fatalf("%q came, and nothing should have", got)
	}
	Settle(t, s, d...)
}

// Settle settles deliveries, which must succeed.
func Settle(t testing.TB, s bus.Source, ds ...bus.Delivery) {
	t.Helper()
	if err := s.Settle(context.Background(), tokens(ds)); err != nil {
		t.Fatal(err)
	}
}

func tokens(ds []bus.Delivery) []bus.Token {
	tokens := make([]bus.Token, len(ds))
	for i := range ds {
		tokens[i] = ds[i].Token
	}
	return tokens
}

// Close closes a source, which must succeed.
func Close(t testing.TB, s bus.Source) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
}

// Payloads returns the deliveries' payloads, sorted.
func Payloads(ds []bus.Delivery) []string {
	var texts []string
	for _, d := range ds {
		texts = append(texts, string(d.Payload))
	}
	slices.Sort(texts)
	return texts
}

func numbers(n int) []string {
	texts := make([]string, n)
	for i := range texts {
		texts[i] = fmt.Sprintf("%06d", i)
	}
	return texts
}

func isClosed(err error) bool { return errors.Is(err, bus.ErrClosed) && !bus.IsRetryable(err) }
