package kafka_test

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
)

// buffered is closed when the client has so many records to produce.
type buffered struct {
	left atomic.Int64
	all  chan struct{}
}

// OnProduceRecordBuffered implements kgo.HookProduceRecordBuffered.
func (b *buffered) OnProduceRecordBuffered(*kgo.Record) {
	if b.left.Add(-1) == 0 {
		close(b.all)
	}
}

// TestRequests counts a batch's requests to the brokers, and reads the meaning of published from
// their side. The brokers answer when the client has the whole batch: how many requests it sends
// before depends on how quick they are.
func TestRequests(t *testing.T) {
	const (
		n       = 1000
		brokers = 2
		atOnce  = 5 // requests that the client has under way at a broker
	)
	c := fakeCluster(t, kfake.SeedTopics(4, "t"))
	var produces, unsafe, commits atomic.Int64
	count := func(key kmsg.Key, f func(kmsg.Request)) {
		c.ControlKey(int16(key), func(req kmsg.Request) (kmsg.Response, error, bool) {
			c.KeepControl()
			f(req)
			return nil, nil, false
		})
	}
	whole := &buffered{all: make(chan struct{})}
	whole.left.Store(n)
	count(kmsg.Produce, func(req kmsg.Request) {
		produces.Add(1)
		c.SleepControl(func() { <-whole.all })
		produce := req.(*kmsg.ProduceRequest)
		for _, topic := range produce.Topics {
			for _, p := range topic.Partitions {
				var batch kmsg.RecordBatch
				if err := batch.ReadFrom(p.Records); err != nil || produce.Acks != -1 || batch.ProducerID < 0 {
					unsafe.Add(1)
				}
			}
		}
	})
	count(kmsg.OffsetCommit, func(kmsg.Request) { commits.Add(1) })

	config := fakeConfig(c)
	config.Client = []kgo.Opt{kgo.WithHooks(whole)}
	b := open(t, config)
	messages := make([]*bus.Message, n)
	for i := range messages {
		messages[i] = &bus.Message{Key: strconv.Itoa(i), Payload: make([]byte, 100)}
	}
	publish(t, b, "t", messages...)
	if got := produces.Load(); got > brokers*(atOnce+1) {
		t.Errorf("%d messages in one call made %d requests: want at most %d to each of %d brokers before an answer, and one with the rest", n, got, atOnce, brokers)
	}
	if got := unsafe.Load(); got > 0 {
		t.Errorf("%d batches did not ask for all replicas (acks=-1), or were not idempotent", got)
	}

	o := newObserver()
	s := subscribe(t, b, "t", name("g"), bus.Earliest, o)
	ds := receive(t, s, n)
	before := commits.Load()
	for _, d := range ds {
		settle(t, s, d)
	}
	closeSource(t, s)
	if got := commits.Load() - before; got > n/10 {
		t.Errorf("settling %d messages one by one made %d commits: want at most a tenth", n, got)
	}
	t.Logf("%d messages: %d requests to publish, %d commits", n, produces.Load(), commits.Load()-before)
}

// TestFetchesAhead: the next records are asked for while the first ones are handled.
func TestFetchesAhead(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(1, "t"))
	ahead := make(chan struct{})
	var once sync.Once
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		for _, topic := range req.(*kmsg.FetchRequest).Topics {
			for _, p := range topic.Partitions {
				if p.FetchOffset > 0 {
					once.Do(func() { close(ahead) })
				}
			}
		}
		return nil, nil, false
	})
	b := open(t, fakeConfig(c))
	messages := make([]*bus.Message, 100)
	for i := range messages {
		messages[i] = &bus.Message{Payload: []byte("x")}
	}
	publish(t, b, "t", messages...)
	s := subscribe(t, b, "t", name("g"), bus.Earliest, newObserver())
	receive(t, s, 1)
	select {
	case <-ahead:
	case <-within(t).Done():
		t.Error("99 messages wait to be received, and no fetch is under way")
	}
	closeSource(t, s)
}
