package all_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/faults"
	"github.com/millrace-go/millrace/router"
)

// brokerBehindProxy opens buses on a broker, directly and through a proxy.
type brokerBehindProxy struct {
	name    string
	exactly bool   // it has transactions
	commit  []byte // text that a request to commit contains
	url     func(t *testing.T) string
	drop    func(t testing.TB, b *bus.Bus, topic, group string)
	through func(ctx context.Context, url string, p *faults.Proxy) (*bus.Bus, error)
}

var brokersBehindProxies = []brokerBehindProxy{
	{
		name: "kafka", exactly: true, commit: []byte{0, 26, 0} /* EndTxn */, drop: dropKafka,
		url: func(t *testing.T) string { return brokertest.With(brokertest.URL(t, "kafka"), "session=6s") },
		through: func(ctx context.Context, url string, p *faults.Proxy) (*bus.Bus, error) {
			c, err := kafka.ParseURL(url)
			if err != nil {
				return nil, err
			}
			// Kafka tells clients where its brokers are, so they are led to the proxy when they dial.
			c.Client = append(c.Client, kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, network, p.Address())
			}))
			return kafka.Open(ctx, c, bus.WithLogger(slog.New(slog.DiscardHandler)))
		},
	},
	{name: "rabbitmq", drop: dropRabbitMQ, url: func(t *testing.T) string { return brokertest.URL(t, "rabbitmq") }, through: openThrough},
	{
		name: "postgres", exactly: true, commit: []byte("commit"), through: openThrough,
		url: func(t *testing.T) string { return brokertest.With(brokertest.Postgres(t), "lease=2s") },
	},
	{
		name: "mysql", exactly: true, commit: []byte("COMMIT"), through: openThrough,
		url: func(t *testing.T) string { return brokertest.With(brokertest.MySQL(t), "lease=2s") },
	},
}

// openThrough opens a URL with the proxy's address in place of its own.
func openThrough(ctx context.Context, rawURL string, p *faults.Proxy) (*bus.Bus, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, err
	}
	u.Host = p.Address()
	return bus.Open(ctx, u.String(), bus.WithLogger(slog.New(slog.DiscardHandler)))
}

func hostOf(t *testing.T, rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	return u.Host
}

// namedFaults are inflicted again and again, each for a moment.
var namedFaults = []struct {
	name    string
	inflict func(p *faults.Proxy, b *brokerBehindProxy)
}{
	{"connections are cut", func(p *faults.Proxy, _ *brokerBehindProxy) { p.Cut() }},
	{"connections are cut at a byte", func(p *faults.Proxy, _ *brokerBehindProxy) {
		p.CutAfter(faults.Direction(rand.IntN(2)), rand.IntN(2000))
	}},
	{"a request has no answer", func(p *faults.Proxy, _ *brokerBehindProxy) { p.CutAnswer(func([]byte) bool { return true }) }},
	{"a commit has no answer", func(p *faults.Proxy, b *brokerBehindProxy) {
		p.CutAnswer(func(request []byte) bool { return b.commit != nil && bytes.Contains(request, b.commit) })
	}},
	{"answers stand still", func(p *faults.Proxy, _ *brokerBehindProxy) { p.Stall(faults.ToClient, true) }},
	{"requests stand still", func(p *faults.Proxy, _ *brokerBehindProxy) { p.Stall(faults.ToServer, true) }},
	{"the server is out of reach", func(p *faults.Proxy, _ *brokerBehindProxy) { p.Refuse(true) }},
}

// TestFaults has members and publishers work behind a proxy that inflicts a fault again and again, on each broker and in each guarantee.
func TestFaults(t *testing.T) {
	for _, fault := range namedFaults {
		t.Run(fault.name, func(t *testing.T) {
			var trials sync.WaitGroup // all at once, beyond -parallel: they wait most of the time
			for _, broker := range brokersBehindProxies {
				for _, guarantee := range []router.Level{router.AtLeastOnce, router.ExactlyOnce} {
					if guarantee == router.AtLeastOnce || broker.exactly {
						trials.Go(func() {
							t.Run(broker.name+", "+guarantee.String(), func(t *testing.T) { faultTrial(t, &broker, fault.inflict, guarantee) })
						})
					}
				}
			}
			trials.Wait()
		})
	}
}

const (
	faultKeys = 10
	faultEach = 40 // messages of a key
	// faultRounds is how often a fault is inflicted, while messages come.
	faultRounds = 12
)

func faultTrial(t *testing.T, broker *brokerBehindProxy, inflict func(*faults.Proxy, *brokerBehindProxy), guarantee router.Level) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	url := broker.url(t)
	p := faults.NewProxy(t, hostOf(t, url))
	tag := bus.NewID()
	in, out, group := "faults-"+tag, "outputs-"+tag, "g-"+tag
	direct, err := bus.Open(ctx, url, bus.WithLogger(slog.New(slog.DiscardHandler)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = direct.Close() })
	if broker.drop != nil {
		t.Cleanup(func() { broker.drop(t, direct, in, group); broker.drop(t, direct, out, group+"-outputs") })
	}
	faulty, err := broker.through(ctx, url, p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = faulty.Close() })

	came := &firsts{byKey: map[string][]int{}, calls: map[string]int{}}
	outputs := router.New(direct, group+"-outputs", router.Logger(slog.New(slog.DiscardHandler)))
	outputs.HandleFunc(out, func(_ context.Context, m *bus.Message) error {
		came.note(m)
		return nil
	})
	member := router.New(faulty, group, router.Logger(slog.New(slog.DiscardHandler)), router.Workers(4))
	member.HandleFunc(in, func(ctx context.Context, m *bus.Message) error {
		if number(m) == 4 && bus.DeliveryFrom(ctx).Attempt == 1 {
			return bus.RetryAfter(errors.New("put aside"), 1100*time.Millisecond)
		}
		return bus.Emit(ctx, out, &bus.Message{ID: m.ID, Key: m.Key})
	}, router.Guarantee(guarantee))
	stop := runAll(t, outputs, member)
	for _, r := range []*router.Router{outputs, member} {
		if err := r.Ready(ctx); err != nil {
			t.Fatal(err)
		}
	}

	// Exactly once covers handling: a message published again after an unknown outcome is two
	// messages.
	publisher := faulty
	if guarantee == router.ExactlyOnce {
		publisher = direct
	}
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range faultEach {
			pause(ctx, 1500*time.Millisecond/faultEach) // all the time that the faults take
			for key := range faultKeys {
				publishUntilKnown(ctx, t, publisher, in, &bus.Message{ID: fmt.Sprintf("%d/%d", key, i), Key: fmt.Sprint(key)})
			}
		}
	})
	for range faultRounds {
		inflict(p, broker)
		pause(ctx, 100*time.Millisecond)
		p.Heal()
		pause(ctx, 50*time.Millisecond)
	}
	publishing.Wait()
	came.await(ctx, t, faultKeys*faultEach)
	stop(t)
	came.judge(t, guarantee)
}

func number(m *bus.Message) (n int) {
	var key int
	_, _ = fmt.Sscanf(m.ID, "%d/%d", &key, &n)
	return n
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// publishUntilKnown publishes again, with the same id, until the outcome is success.
func publishUntilKnown(ctx context.Context, t *testing.T, b *bus.Bus, topic string, m *bus.Message) {
	for {
		err := b.PublishMessages(ctx, topic, m)
		if err == nil {
			return
		}
		if ctx.Err() != nil || !bus.IsRetryable(err) {
			t.Errorf("publish %s: %v", m.ID, err)
			return
		}
		pause(ctx, 10*time.Millisecond)
	}
}

// runAll runs routers; stop ends them cleanly.
func runAll(t *testing.T, routers ...*router.Router) (stop func(t *testing.T)) {
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	over := make(chan error, len(routers))
	for _, r := range routers {
		go func() { over <- r.Run(ctx) }()
	}
	return func(t *testing.T) {
		cancel()
		for range routers {
			if err := <-over; err != nil {
				t.Errorf("run: %v", err)
			}
		}
	}
}

// firsts notes arrivals: by key the numbers in the order of their first arrival, and how often each
// message came.
type firsts struct {
	mu    sync.Mutex
	byKey map[string][]int
	calls map[string]int
}

func (f *firsts) note(m *bus.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls[m.ID]++; f.calls[m.ID] == 1 {
		f.byKey[m.Key] = append(f.byKey[m.Key], number(m))
	}
}

func (f *firsts) await(ctx context.Context, t *testing.T, n int) {
	t.Helper()
	for {
		f.mu.Lock()
		got := len(f.calls)
		f.mu.Unlock()
		if got >= n {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%d of %d messages came", got, n)
		}
		pause(ctx, 10*time.Millisecond)
	}
}

func (f *firsts) judge(t *testing.T, guarantee router.Level) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, numbers := range f.byKey {
		if !slices.IsSorted(numbers) {
			t.Errorf("key %s came in the order %v", key, numbers)
		}
	}
	for id, n := range f.calls {
		if n > 1 && guarantee == router.ExactlyOnce {
			t.Errorf("%s was published %d times", id, n)
		}
	}
}
