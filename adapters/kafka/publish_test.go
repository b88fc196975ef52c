package kafka_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// byPartition are messages for each of four partitions, in turn, as keys go.
func byPartition(n int) []*bus.Message {
	partitioner := kgo.StickyKeyPartitioner(nil).ForTopic("t")
	keys := map[int]string{}
	for i := 0; len(keys) < 4; i++ {
		key := string(rune('a' + i))
		keys[partitioner.Partition(&kgo.Record{Key: []byte(key)}, 4)] = key
	}
	ms := make([]*bus.Message, n)
	for i := range ms {
		ms[i] = &bus.Message{Key: keys[i%4], Payload: []byte{byte(i)}}
	}
	return ms
}

// outcomes publishes and returns the errors by message.
func outcomes(tb testing.TB, ctx context.Context, b *bus.Bus, topic string, ms []*bus.Message) []error {
	tb.Helper()
	err := b.PublishMessages(ctx, topic, ms...)
	if err == nil {
		return make([]error, len(ms))
	}
	pe, ok := err.(*bus.PublishError)
	if !ok || len(pe.Errs) != len(ms) {
		tb.Fatalf("not a PublishError of %d messages: %v", len(ms), err)
	}
	for _, err := range pe.Errs {
		if e, ok := err.(*bus.Error); err != nil && (!ok || e.Op != "publish" || e.Broker != "kafka" || e.Topic != topic) {
			tb.Errorf("%#v", err)
		}
	}
	return pe.Errs
}

func TestPublishFailsByPartition(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(4, "t"))
	b := open(t, fakeConfig(c))
	for _, tc := range []struct {
		err                 *kerr.Error
		definite, retryable bool
	}{
		{kerr.TopicAuthorizationFailed, true, false},
		{kerr.InvalidRecord, true, false},
		{kerr.InvalidTimestamp, true, false},
		{kerr.UnknownServerError, false, true},
		{kerr.MessageTooLarge, true, false},
	} {
		t.Run(tc.err.Message, func(t *testing.T) {
			fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "t", Partitions: []int32{2}, Err: tc.err, Count: -1})
			defer fault.Remove()
			ms := byPartition(12)
			for i, err := range outcomes(t, within(t), b, "t", ms) {
				if (i%4 == 2) != (err != nil) {
					t.Errorf("message %d: %v", i, err)
				}
				if err == nil {
					continue
				}
				if !errors.Is(err, tc.err) || bus.IsDefinite(err) != tc.definite || bus.IsRetryable(err) != tc.retryable {
					t.Errorf("message %d: %v: definite %v, retryable %v", i, err, bus.IsDefinite(err), bus.IsRetryable(err))
				}
			}
		})
	}
	if errs := outcomes(t, within(t), b, "t", byPartition(12)); errors.Join(errs...) != nil {
		t.Error("after the faults:", errs)
	}
}

// TestPublishIsRepeated: the client tries again after passing errors, and the caller does not see
// them.
func TestPublishIsRepeated(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(4, "t"))
	b := open(t, fakeConfig(c))
	for _, err := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.NotEnoughReplicas, kerr.NotEnoughReplicasAfterAppend, kerr.RequestTimedOut} {
		fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: "t", Err: err, Count: 4})
		publish(t, b, "t", byPartition(8)...)
		if fault.Hits() == 0 {
			t.Errorf("%v was not tried", err)
		}
		fault.Remove()
	}
	var n int64
	for _, p := range c.PartitionInfos("t") {
		n += p.HighWatermark
	}
	if n != 4*8 {
		t.Errorf("%d records in the log, want %d: the client's repeats made copies", n, 4*8)
	}
}

func TestPublishGivesUpWaiting(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(4, "t"))
	b := open(t, fakeConfig(c))
	publish(t, b, "t", byPartition(4)...)
	arrived, release := make(chan struct{}), make(chan struct{})
	arrive := sync.OnceFunc(func() { close(arrived) }) // the cluster asks again for each request that comes meanwhile
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		arrive()
		c.SleepControl(func() { <-release })
		return nil, nil, false
	})
	ctx, cancel := context.WithCancelCause(within(t))
	reason := errors.New("no time left")
	go func() {
		<-arrived
		cancel(reason)
	}()
	for i, err := range outcomes(t, ctx, b, "t", byPartition(4)[:1]) {
		if !errors.Is(err, context.Canceled) || !errors.Is(err, reason) || bus.IsDefinite(err) || !bus.IsRetryable(err) || !strings.Contains(err.Error(), "not known") {
			t.Errorf("message %d: %v", i, err)
		}
	}
	close(release)
	publish(t, b, "t", byPartition(4)...) // neighbours do not suffer
}

func TestPublishTooLarge(t *testing.T) {
	c := fakeCluster(t)
	limit := "20000"
	if err := c.CreateTopic("small", 1, map[string]string{"max.message.bytes": limit}); err != nil {
		t.Fatal(err)
	}
	config := fakeConfig(c)
	config.Compression = "none"
	b := open(t, config)
	large := &bus.Message{Key: "k", Payload: make([]byte, 21000)}
	errs := outcomes(t, within(t), b, "small", append(texts("1", "2"), large, texts("3")[0]))
	if errs[0] != nil || errs[1] != nil || errs[3] != nil || !errors.Is(errs[2], bus.ErrTooLarge) || !bus.IsDefinite(errs[2]) || bus.IsRetryable(errs[2]) {
		t.Error(errs)
	}
	// Many small ones are not put into a batch that the topic refuses.
	many := make([]*bus.Message, 100)
	for i := range many {
		many[i] = &bus.Message{Key: "k", Payload: make([]byte, 1000)}
	}
	publish(t, b, "small", many...)
	// A topic that the bus creates takes every message that the bus takes.
	publish(t, b, "large", &bus.Message{Payload: make([]byte, kafka.DefaultMaxMessage-1000)})
	if errs := outcomes(t, within(t), b, "large", []*bus.Message{{Payload: make([]byte, kafka.DefaultMaxMessage+1000)}}); !errors.Is(errs[0], bus.ErrTooLarge) {
		t.Error(errs)
	}
}

// TestLimitIsLowered: messages that a topic still takes one by one are published, in their order,
// in smaller batches.
func TestLimitIsLowered(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b, f := open(t, c), newForeigner(t, c)
		topic, in := name("t"), name("in")
		onePartition(t, b, topic)
		onePartition(t, b, in)
		rnd := rand.NewChaCha8([32]byte{1})
		random := func(n int) []*bus.Message {
			ms := make([]*bus.Message, n)
			for i := range ms {
				ms[i] = &bus.Message{Key: "k", Payload: make([]byte, 1000)}
				_, _ = rnd.Read(ms[i].Payload)
			}
			return ms
		}
		publish(t, b, topic, random(100)...)
		publish(t, b, in, texts("a")...)
		s, _ := transactional(t, b, in, name("g"))
		ds := receive(t, s, 1)
		limit := func(n string) {
			t.Helper()
			rs, err := f.adm.AlterTopicConfigs(within(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "max.message.bytes", Value: &n}}, topic)
			if err == nil {
				err = rs[0].Err
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		limit("10000")
		ms := random(100)
		ms = append(ms, &bus.Message{Key: "k", Payload: make([]byte, 20_000)})
		_, _ = rnd.Read(ms[100].Payload)
		for i, err := range outcomes(t, within(t), b, topic, ms) {
			if i < 100 && err != nil || i == 100 && !errors.Is(err, bus.ErrTooLarge) {
				t.Errorf("message %d: %v", i, err)
			}
		}
		got := receive(t, subscribe(t, b, topic, name("g"), bus.Earliest, newObserver()), 200)[100:]
		for i := range got {
			if !bytes.Equal(got[i].Payload, ms[i].Payload) {
				t.Fatalf("message %d is another", i)
			}
		}
		// Outputs of transactions, too.
		if err := s.SettleWith(within(t), []driver.Settlement{{Token: ds[0].Token, Outputs: outputs(topic, random(9)...)}}); err != nil {
			t.Error(err)
		}
		publish(t, b, in, texts("b")...)
		ds = receive(t, s, 1)
		limit("5000")
		for tries := 0; ; tries++ {
			err := bus.Outcomes(s.SettleWith(within(t), []driver.Settlement{{Token: ds[0].Token, Outputs: outputs(topic, random(9)...)}}), 1)[0]
			if err == nil {
				break
			}
			if !bus.IsRetryable(err) || tries > 5 {
				t.Fatal(err)
			}
		}
	})
}

// TestLimitIsNotReadable: a publisher that may not read a topic's limit finds it.
func TestLimitIsNotReadable(t *testing.T) {
	c := fakeCluster(t)
	if err := c.CreateTopic("small", 1, map[string]string{"max.message.bytes": "10000"}); err != nil {
		t.Fatal(err)
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Err: kerr.TopicAuthorizationFailed, Count: -1})
	b := open(t, fakeConfig(c))
	rnd := rand.NewChaCha8([32]byte{2})
	ms := make([]*bus.Message, 50)
	for i := range ms {
		ms[i] = &bus.Message{Key: "k", Payload: make([]byte, 1000)}
		_, _ = rnd.Read(ms[i].Payload)
	}
	publish(t, b, "small", ms...)
	for i, d := range receive(t, subscribe(t, b, "small", "g", bus.Earliest, newObserver()), 50) {
		if !bytes.Equal(d.Payload, ms[i].Payload) {
			t.Fatalf("message %d is another", i)
		}
	}
}

func outputs(topic string, ms ...*bus.Message) []driver.Output {
	out := make([]driver.Output, len(ms))
	for i, m := range ms {
		m.ID, m.Source, m.Time = bus.NewID(), "/s", time.Now()
		out[i] = driver.Output{Topic: topic, Message: m}
	}
	return out
}

func TestPublishToMissingTopic(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.Partitions = 0
	b := open(t, config)
	errs := outcomes(t, within(t), b, "t", texts("1", "2"))
	for _, err := range errs {
		if !errors.Is(err, bus.ErrNotFound) || !bus.IsDefinite(err) || bus.IsRetryable(err) || !strings.Contains(err.Error(), "partitions=N") {
			t.Error(err)
		}
	}
	config.Partitions = 7
	b = open(t, config)
	var wg sync.WaitGroup
	for range 20 { // all at once: one creates it
		wg.Go(func() { publish(t, b, "t", texts("1")...) })
	}
	wg.Wait()
	if n := len(c.PartitionInfos("t")); n != 7 {
		t.Errorf("the topic has %d partitions, want 7", n)
	}
}

// TestOneTopicIsNotServed: publishing to others does not wait for it.
func TestOneTopicIsNotServed(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(1, "good"))
	b := open(t, fakeConfig(c))
	asked := make(chan struct{})
	var once sync.Once
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "slow", Err: kerr.LeaderNotAvailable, Count: -1, When: func(kmsg.Request) bool {
		once.Do(func() { close(asked) })
		return true
	}})
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() { over <- b.PublishMessages(ctx, "slow", texts("x")...) }()
	<-asked
	soon, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	if err := b.PublishMessages(soon, "good", texts("x")...); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func TestPublishToDeletedTopic(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", texts("1")...)
	if err := c.DeleteTopic("t"); err != nil {
		t.Fatal(err)
	}
	// The first publish finds out, or was quick enough; then the topic is made again.
	ctx := within(t)
	for b.PublishMessages(ctx, "t", texts("2")...) != nil {
		if ctx.Err() != nil {
			t.Fatal("the topic is never made again")
		}
	}
	if n := len(c.PartitionInfos("t")); n != 4 {
		t.Errorf("the topic has %d partitions, want 4", n)
	}
}

func TestPublishWithoutBrokers(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(4, "t"))
	config := fakeConfig(c)
	config.PublishTimeout = time.Second
	b, err := kafka.Open(within(t), config, bus.WithCloseTimeout(time.Second))
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", byPartition(4)...)
	c.Close()
	begin := time.Now()
	for i, err := range outcomes(t, within(t), b, "t", byPartition(4)) {
		if !bus.IsRetryable(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("gave up after %v, want about 1s", d)
	}
	// The publishing under way is not confirmed.
	if err := b.Close(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	_ = b.Shutdown(within(t)) // the close that Close did not wait for any longer; the error is the same
}

// TestAnswerLost: a message that was written without an answer may be in the log, whatever the
// broker answers to a later try.
func TestAnswerLost(t *testing.T) {
	for _, err := range []*kerr.Error{kerr.NotLeaderForPartition, kerr.TopicAuthorizationFailed} {
		c := fakeCluster(t, kfake.SeedTopics(1, "t"))
		n := &network{conns: map[net.Conn]struct{}{}}
		config := fakeConfig(c)
		config.PublishTimeout = time.Second
		config.Client = []kgo.Opt{kgo.Dialer(n.dial)}
		b := open(t, config)
		tries := 0
		c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
			if tries++; tries == 1 {
				c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: err, Count: -1, When: func(kmsg.Request) bool { return tries > 1 }})
				n.cut(false) // it is written, and no answer gets through
			}
			c.KeepControl()
			return nil, nil, false
		})
		failed := outcomes(t, within(t), b, "t", texts("a"))[0]
		info := c.PartitionInfo("t", 0)
		if failed == nil || bus.IsDefinite(failed) || info.HighWatermark != 1 {
			t.Errorf("%v: definite %v, and %d messages are in the log", failed, bus.IsDefinite(failed), info.HighWatermark)
		}
	}
}

// TestPublishIsBounded: a broker that does not answer costs the buffer's memory, then publishers
// wait.
func TestPublishIsBounded(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.Partitions, config.MaxMessage = 1, 64<<20
	b := open(t, config)
	publish(t, b, "t", texts("1")...)
	release := make(chan struct{})
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		c.SleepControl(func() { <-release })
		return nil, nil, false
	})
	defer close(release)
	short, cancel := context.WithTimeout(within(t), 2*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	var mu sync.Mutex
	refused, unknown := 0, 0
	payload := make([]byte, 32<<20)
	for range 2 * kafka.PublishBuffer / len(payload) {
		wg.Go(func() {
			err := b.PublishMessages(short, "t", &bus.Message{Payload: payload})
			mu.Lock()
			defer mu.Unlock()
			if bus.IsDefinite(err) {
				refused++
			} else {
				unknown++
			}
		})
	}
	wg.Wait()
	if unknown > kafka.PublishBuffer/len(payload) || unknown == 0 || refused == 0 {
		t.Errorf("%d under way, %d refused", unknown, refused)
	}
}

func TestPublishAfterClose(t *testing.T) {
	b := open(t, fakeConfig(fakeCluster(t, kfake.SeedTopics(1, "t"))))
	d := driver.Of(b)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	err := d.Publish(within(t), "t", texts("1"))
	if !errors.Is(err, bus.ErrClosed) || !bus.IsDefinite(err) || bus.IsRetryable(err) {
		t.Error(err)
	}
	if _, err := d.Subscribe(within(t), bus.Subscription{Topic: "t", Group: "g", InFlight: 1, Bytes: 1}, newObserver()); !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
	if _, err := d.Poison(within(t), "g"); !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
	if err := d.Close(within(t)); err != nil {
		t.Error(err)
	}
}
