package kafka

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/budget"
)

// driver is one opened bus. It publishes and administers with one client. Each source has a client
// of its own: a client is a member of one group, and a slow reader's connection must not delay
// publishers.
type busDriver struct {
	config   Config
	client   *kgo.Client
	adm      *kadm.Client
	topics   *topics
	buffer   *budget.Budget
	wire     wire
	patience patience
	pool     fetchPool
	parker   parker
	alone    chan struct{} // full while a record is published alone

	mu      sync.Mutex
	sources map[*source]struct{}
	isOver  bool
	closed  chan struct{} // closed when Close begins
	done    chan struct{} // closed when Close is complete
	err     error         // Close's, set before done is closed
}

func open(ctx context.Context, c Config) (*busDriver, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	d := &busDriver{
		config:   c,
		buffer:   budget.New(math.MaxInt, publishBuffer),
		patience: patience{timeout: c.PublishTimeout},
		alone:    make(chan struct{}, 1),
		sources:  map[*source]struct{}{},
		closed:   make(chan struct{}),
		done:     make(chan struct{}),
	}
	d.topics = newTopics(&d.config)
	client, err := kgo.NewClient(d.options(d.producerOptions()...)...)
	if err != nil {
		return nil, fmt.Errorf("kafka: %w: %w", bus.ErrInvalid, err)
	}
	d.client = client
	d.adm = kadm.NewClient(client)
	d.topics.client, d.topics.adm = client, d.adm
	if err := connect(ctx, client); err != nil {
		client.Close()
		return nil, fail("open", "", err)
	}
	return d, nil
}

// connect waits for a broker's answer. A broker that wants TLS or SASL hangs up at the first request, and so does a network in trouble.
// Three times in a row is the former, as long as nothing else was ever answered.
func connect(ctx context.Context, client *kgo.Client) error {
	hungUp := 0
	return persist(ctx, func() error {
		err := client.Ping(ctx)
		if _, ok := errors.AsType[*kgo.ErrFirstReadEOF](err); !ok {
			hungUp = 0
		} else if hungUp++; hungUp == 3 {
			return fmt.Errorf("%w: %w", bus.ErrInvalid, err)
		}
		return err
	})
}

// producerOptions returns the options of clients that write.
func (d *busDriver) producerOptions() []kgo.Opt {
	c := &d.config
	return []kgo.Opt{
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(c.Linger),
		kgo.ProducerBatchCompression(codecs[c.Compression](), kgo.NoCompression()),
		kgo.ProducerBatchMaxBytesFn(d.topics.limit),
		kgo.RecordDeliveryTimeout(c.PublishTimeout),
		// The budget bounds the buffered messages, in bytes. The client's own bound would need the
		// callers' contexts. When one context ends, the client fails other callers' messages, too:
		// a partition's buffer fails as a whole.
		kgo.MaxBufferedRecords(math.MaxInt32),
		kgo.WithHooks(&d.wire),
	}
}

// options returns the options of every client, the given options, and the caller's. Append the
// options that correctness needs after them.
func (d *busDriver) options(more ...kgo.Opt) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.SeedBrokers(d.config.Brokers...),
		kgo.ClientID("millrace"),
		// After a leader has moved, the default of 5 s would be how long its partitions stand still.
		kgo.MetadataMinAge(500 * time.Millisecond),
		// A connection that ends at its first read is an outage, once the bus is open: connect has seen that TLS and SASL are right.
		kgo.AlwaysRetryEOF(),
	}
	if d.config.TLS != nil {
		opts = append(opts, kgo.DialTLSConfig(d.config.TLS))
	}
	if d.config.SASL != nil {
		opts = append(opts, kgo.SASL(d.config.SASL))
	}
	if d.config.Rack != "" {
		opts = append(opts, kgo.Rack(d.config.Rack))
	}
	return append(append(opts, more...), d.config.Client...)
}

// versions returns the protocol versions that the caller lets clients speak, with a cap on one kind
// of request.
func (d *busDriver) versions(key kmsg.Key, most int16) *kversion.Versions {
	allowed, _ := d.client.OptValue(kgo.MaxVersions).(*kversion.Versions)
	if allowed == nil {
		allowed = kversion.Stable()
	}
	capped := new(kversion.Versions)
	allowed.EachMaxKeyVersion(capped.SetMaxKeyVersion)
	if v, ok := capped.LookupMaxKeyVersion(int16(key)); ok {
		capped.SetMaxKeyVersion(int16(key), min(v, most))
	}
	return capped
}

// Capabilities implements driver.Driver. The largest message is the topic's affair, so none is stated here.
func (d *busDriver) Capabilities() bus.Capabilities {
	return bus.Capabilities{Broker: "kafka", Durable: true, Replay: true, StartAt: true, Parking: true, Transactions: true}
}

// As gives the native client to bus.As.
func (d *busDriver) As(target any) bool {
	if c, ok := target.(**kgo.Client); ok {
		*c = d.client
		return true
	}
	return false
}

// Ping implements driver.Pinger.
func (d *busDriver) Ping(ctx context.Context) error {
	if d.isClosed() {
		return fail("ping", "", bus.ErrClosed)
	}
	if err := d.client.Ping(ctx); err != nil {
		return fail("ping", "", err)
	}
	return nil
}

func (d *busDriver) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// Close implements driver.Driver: sources leave their groups, publishes under way end.
func (d *busDriver) Close(ctx context.Context) error {
	d.mu.Lock()
	if d.isOver {
		d.mu.Unlock()
		select {
		case <-d.done:
			return d.err
		case <-ctx.Done():
			return fail("close", "", ctx.Err())
		}
	}
	d.isOver = true
	close(d.closed)
	open := make([]*source, 0, len(d.sources))
	for s := range d.sources {
		open = append(open, s)
	}
	d.mu.Unlock()
	defer close(d.done)

	errs := make([]error, len(open)+1)
	var wg sync.WaitGroup
	for i, s := range open {
		wg.Go(func() { errs[i] = s.Close(ctx) })
	}
	wg.Go(func() {
		if err := d.client.Flush(ctx); err != nil {
			errs[len(open)] = fail("close", "", fmt.Errorf("some messages under way were not confirmed in time: %w", err))
		}
	})
	wg.Wait()
	d.client.Close()
	if err := d.parker.close(ctx); err != nil {
		errs = append(errs, fail("close", "", fmt.Errorf("some messages that were being parked or poisoned were not confirmed in time: %w", err)))
	}
	d.err = errors.Join(errs...)
	return d.err
}
