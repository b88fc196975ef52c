package sqltest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus"
)

// through returns the database as it is reached through a new proxy.
func (db Database) through(t testing.TB) (Database, *Proxy) {
	t.Helper()
	u, err := url.Parse(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	proxy := NewProxy(t, u.Host)
	u.Host = proxy.Address()
	db.URL = u.String()
	return db, proxy
}

// Cuts publishes and consumes over connections that are cut again and again, and nobody has to do
// anything about it. A message whose call returned nil is handled, in the order of its key. A
// message that was definitely not published is not handled. A message with an unknown outcome comes
// at most once, in its place in the log. That place may follow messages that were published later
// on a new connection: the server still carries out the statements that it had received before the
// cut.
func Cuts(t *testing.T, db Database) {
	const keys, each = 8, 120
	behind, proxy := db.through(t)
	topic := Topic()
	b := behind.Open(t)
	Publish(t, b, topic, Texts("first")...)
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	var mu sync.Mutex
	published, refused, unknown := map[string]bool{}, map[string]bool{}, 0
	var publishing sync.WaitGroup
	for k := range keys {
		publishing.Go(func() {
			for i := range each {
				text := fmt.Sprintf("%d-%03d", k, i)
				err := b.PublishMessages(bounded(t), topic, &bus.Message{Key: fmt.Sprint(k), Payload: []byte(text)})
				mu.Lock()
				switch {
				case err == nil:
					published[text] = true
				case bus.IsDefinite(err):
					refused[text] = true
				case !bus.IsRetryable(err):
					t.Errorf("%v", err)
				default:
					unknown++
				}
				mu.Unlock()
				if k == 0 && i%10 == 5 {
					proxy.Cut()
				}
			}
		})
	}
	publishing.Wait()
	direct := db.Open(t)
	Publish(t, direct, topic, &bus.Message{Key: "end", Payload: []byte("end")})
	seen := map[string]int64{} // positions
	last, newest := map[string]int64{}, map[string]string{}
	late := 0
	for end := false; !end || !covers(seen, published); {
		for _, d := range Receive(t, s, 1) {
			text := string(d.Payload)
			if text == "end" {
				end = true
				continue
			}
			at, again := seen[text]
			switch {
			case again && at != d.Position:
				t.Errorf("%s was published once and has the positions %d and %d", text, at, d.Position)
			case !again && d.Position < last[d.Key]:
				t.Errorf("%s at position %d came after position %d", text, d.Position, last[d.Key])
			case !again && text < newest[d.Key] && published[text]:
				t.Errorf("%s came after %s", text, newest[d.Key])
			case !again && text < newest[d.Key]:
				late++
			}
			seen[text], last[d.Key], newest[d.Key] = d.Position, max(last[d.Key], d.Position), max(newest[d.Key], text)
			if refused[text] {
				t.Errorf("%s was reported as definitely not published", text)
			}
			if err := s.Settle(bounded(t), []bus.Token{d.Token}); err != nil && !errors.Is(err, bus.ErrStale) {
				t.Error(err)
			}
		}
	}
	t.Logf("%d published, %d refused, %d unknown, of which %d came late", len(published), len(refused), unknown, late)
	Close(t, s)
}

func covers(seen map[string]int64, all map[string]bool) bool {
	for text := range all {
		if _, ok := seen[text]; !ok {
			return false
		}
	}
	return true
}

// Partition cuts a member off without a word: it gives its lanes up by its own clock before anybody
// else takes them, and it joins again when the network is back.
func Partition(t *testing.T, db Database) {
	behind, proxy := db.through(t)
	topic := Topic()
	old, next := NewObserver(), NewObserver()
	b := behind.Open(t, "lease=2s")
	s := Subscribe(t, b, topic, "g", bus.Earliest, old)
	old.Await(t, lanes)
	successor := Subscribe(t, db.Open(t, "lease=2s"), topic, "g", bus.Earliest, next)
	old.Await(t, lanes/2)
	next.Await(t, lanes/2)
	Publish(t, b, topic, Texts(numbers(100)...)...)
	mine := Receive(t, s, len(inLanes(t, old, numbers(100))))
	proxy.Hang(true)
	for next.Count() < lanes {
		e := <-next.Events
		if strings.HasPrefix(e, "assigned") && old.Count() > 0 {
			t.Fatalf("%q, and the old owner still has %d lanes", e, old.Count())
		}
	}
	if err := s.Settle(bounded(t), tokens(mine)); !errors.Is(err, bus.ErrStale) {
		t.Errorf("settling after the loss: %v", err)
	}
	if got := Payloads(Receive(t, successor, 100)); !slices.Equal(got, numbers(100)) {
		t.Errorf("the successor got %v", got)
	}
	proxy.Hang(false)
	old.Await(t, lanes/2)
	next.Await(t, lanes/2)
}

// inLanes returns the keys in lanes that the observer holds.
func inLanes(t *testing.T, o *Observer, keys []string) (mine []string) {
	t.Helper()
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, key := range keys {
		for l := range o.owned {
			if l.ID == sqllog.Shard(key, lanes) {
				mine = append(mine, key)
			}
		}
	}
	return mine
}

// Torture has writers with transactions that stay open for a while and overlap. Some are undone,
// while a group reads along: nothing may be skipped, and no undone message may come. write inserts
// messages of the key, with these payloads, in one transaction, waits, and commits or rolls back.
func Torture(t *testing.T, db Database, writers int, write func(ctx context.Context, topic, key string, payloads []string, pause time.Duration, rollback bool) error) {
	const duration = 3 * time.Second
	topic := Topic()
	b := db.Open(t, "shards=1") // all writers in one lane
	Publish(t, b, topic, &bus.Message{Key: "first"})
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	Settle(t, s, Receive(t, s, 1)...)
	committed := make([]int, writers)
	var writing sync.WaitGroup
	defer writing.Wait()
	end := time.Now().Add(duration)
	for w := range writers {
		writing.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 1))
			for time.Now().Before(end) {
				rollback := rnd.IntN(10) == 0
				var payloads []string
				for range 1 + rnd.IntN(4) {
					text := fmt.Sprint(committed[w] + len(payloads))
					if rollback {
						text = "undone"
					}
					payloads = append(payloads, text)
				}
				if err := write(context.Background(), topic, fmt.Sprint(w), payloads, rand.N(30*time.Millisecond), rollback); err != nil {
					t.Error(err)
					return
				}
				if !rollback {
					committed[w] += len(payloads)
				}
			}
		})
	}
	written := make(chan struct{})
	go func() {
		writing.Wait()
		close(written)
	}()
	next := make([]int, writers)
	buf := make([]bus.Delivery, 100)
	total := 0
	receive := func(ctx context.Context) bool {
		n, err := s.Receive(ctx, buf, 1<<20)
		for _, d := range buf[:n] {
			var w int
			if _, err := fmt.Sscan(d.Key, &w); err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprint(next[w]); string(d.Payload) != want {
				t.Fatalf("writer %d: %s came, want %s", w, d.Payload, want)
			}
			next[w]++
			total++
		}
		Settle(t, s, buf[:n]...)
		return err == nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-written
		cancel()
	}()
	for receive(ctx) {
	}
	<-written
	Publish(t, b, topic, &bus.Message{Key: "0", Payload: fmt.Append(nil, committed[0])})
	committed[0]++
	for !slices.Equal(next, committed) {
		if !receive(bounded(t)) {
			t.Fatalf("received %v, committed %v", next, committed)
		}
	}
	t.Logf("%d messages", total)
}
