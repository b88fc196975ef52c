package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// parkingObserver also records the reports of parked messages.
type parkingObserver struct {
	*observer
	parked []driver.Parked
}

func (o *parkingObserver) Parked(ps []driver.Parked) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.parked = append(o.parked, ps...)
	o.changed()
}

// told waits for the observer to know of n parked messages.
func (o *parkingObserver) told(tb testing.TB, n int) []driver.Parked {
	tb.Helper()
	o.until(tb, fmt.Sprintf("%d parked messages told of", n), func(*observer) bool { return len(o.parked) >= n })
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.parked) > n {
		tb.Errorf("told of %d parked messages, want %d", len(o.parked), n)
	}
	return slices.Clone(o.parked)
}

// parking subscribes as a router does that parks.
func parking(tb testing.TB, b *bus.Bus, topic, group string) (driver.ParkingSource, *parkingObserver) {
	tb.Helper()
	o := &parkingObserver{observer: newObserver()}
	return subscribe(tb, b, topic, group, bus.Earliest, o).(driver.ParkingSource), o
}

// parkAll parks deliveries, due in an hour.
func parkAll(ds []bus.Delivery) []driver.Parking {
	ps := make([]driver.Parking, len(ds))
	for i := range ds {
		ps[i] = driver.Parking{Delivery: ds[i], Due: time.Now().Add(time.Hour)}
	}
	return ps
}

func fetched(tb testing.TB, s driver.ParkingSource, ps []driver.Parked) []string {
	tb.Helper()
	tokens := make([]bus.Token, len(ps))
	for i := range ps {
		tokens[i] = ps[i].Token
	}
	ds := make([]bus.Delivery, len(ps))
	n, err := s.Fetch(within(tb), tokens, ds)
	if err != nil {
		tb.Fatal(err)
	}
	return payloads(ds[:n])
}

func parkingTopic(topic, group string) string {
	return fmt.Sprintf("millrace.parking.%d.%s.%s", len(group), group, topic)
}

// produces lets a test say whether writes to parking topics arrive.
func produces(c *kfake.Cluster) (cut *atomic.Bool) {
	cut = new(atomic.Bool)
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		return nil, errors.New("cut"), cut.Load()
	})
	return cut
}

// TestParkThatFailed: the client writes a record later that had no answer. The record is not there
// a second time.
func TestParkThatFailed(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.PublishTimeout = time.Second
	b := open(t, config)
	publish(t, b, "t", texts("a", "b", "c")...)
	s, _ := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 3))
	if err := s.Park(within(t), ps[:1]); err != nil { // the topic is there
		t.Fatal(err)
	}
	cut := produces(c)
	cut.Store(true)
	before := slices.Clone(ps[1:])
	if err := s.Park(within(t), ps[1:]); !bus.IsRetryable(err) {
		t.Fatalf("got %v, want an error that can be retried", err)
	}
	for i := range before {
		if ps[1+i].Token != before[i].Token {
			t.Errorf("the token is %+v now, and nothing is parked", ps[1+i].Token)
		}
	}
	cut.Store(false)
	for errors.Is(s.Park(within(t), ps[1:]), context.DeadlineExceeded) { // the client is backing off still
	}
	closeSource(t, s)
	s, o := parking(t, b, "t", "g")
	publish(t, b, "t", texts("d")...)
	if got := payloads(receive(t, s, 1)); got[0] != "d" {
		t.Errorf("the next owner got %v", got)
	}
	if got := fetched(t, s, o.told(t, 3)); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("parked are %v", got)
	}
}

// TestInjectIsCarriedOutOnce: an owner that fails half-way through the commands goes on with them, and so does the next.
func TestInjectIsCarriedOutOnce(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.PublishTimeout = time.Second
	b, outside := open(t, config), open(t, config)
	publish(t, b, "t", texts("x")...)
	s, o := parking(t, b, "t", "g")
	settle(t, s, receive(t, s, 1)...)
	injector, _ := bus.As[driver.Injector](outside)
	var ps []driver.Parking
	for _, m := range texts("a", "b", "c") {
		ps = append(ps, driver.Parking{Delivery: bus.Delivery{Message: m}, Due: time.Now().Add(time.Hour)})
	}
	if err := injector.Inject(within(t), "t", "g", ps); err != nil {
		t.Fatal(err)
	}
	cut := produces(c)
	cut.Store(true)
	if err := o.toldOf(t, "other commands for partition"); !bus.IsRetryable(err) {
		t.Error(err)
	}
	cut.Store(false)
	if got := fetched(t, s, o.told(t, 3)); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("parked are %v", got)
	}
	closeSource(t, s)
	s, o = parking(t, b, "t", "g")
	if got := fetched(t, s, o.told(t, 3)); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("the next owner is told of %v", got)
	}
}

// TestLateRecordIsAdopted: messages that an earlier owner, or the next owner, has parked in a lane
// are reported and kept: their origin may be settled.
func TestLateRecordIsAdopted(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("a", "b")...)
		s, o := parking(t, b, topic, group)
		ps := parkAll(receive(t, s, 2))
		if err := s.Park(within(t), ps[:1]); err != nil {
			t.Fatal(err)
		}
		ours := recordAt(t, c, parkingTopic(topic, group), ps[0].Lane, 0)
		late := &kgo.Record{Topic: ours.Topic, Partition: ours.Partition, Key: []byte("42"), Value: []byte("late"), Headers: ours.Headers}
		for i, h := range late.Headers {
			if h.Key == "millrace-facts" {
				late.Headers[i].Value = []byte(`{"attempt":3,"writer":"another"}`)
			}
		}
		produce(t, c, late)
		if got := fetched(t, s, o.told(t, 1)); !slices.Equal(got, []string{"late"}) {
			t.Errorf("told of %v", got)
		}
		closeSource(t, s)
		s, o = parking(t, b, topic, group)
		if got := payloads(receive(t, s, 1)); got[0] != "b" {
			t.Errorf("the next owner got %v", got)
		}
		if got := fetched(t, s, o.told(t, 2)); !slices.Equal(got, []string{"late", "a"}) {
			t.Errorf("parked are %v", got)
		}
	})
}

// TestParkingGrowsWithTopic: a partition that the topic gets later has one in the parking topic.
func TestParkingGrowsWithTopic(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		c.Partitions = 1
		c.Client = []kgo.Opt{kgo.MetadataMaxAge(time.Second)} // how soon new partitions are seen
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("a")...)
		s, o := parking(t, b, topic, group)
		if err := s.Park(within(t), parkAll(receive(t, s, 1))); err != nil {
			t.Fatal(err)
		}
		client, _ := bus.As[*kgo.Client](b)
		if _, err := kadm.NewClient(client).CreatePartitions(within(t), 5, topic); err != nil {
			t.Fatal(err)
		}
		o.until(t, "the new partitions are assigned", owns(6))
		r := &kgo.Record{Topic: topic, Partition: 5, Value: []byte("b")}
		manual, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err != nil {
			t.Fatal(err)
		}
		defer manual.Close()
		if err := manual.ProduceSync(within(t), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
		ds := receive(t, s, 1)
		if ds[0].Lane != 5 {
			t.Fatalf("received from lane %d", ds[0].Lane)
		}
		ps := parkAll(ds)
		if err := s.Park(within(t), ps); err != nil {
			t.Fatal(err)
		}
		closeSource(t, s)
		s, o = parking(t, b, topic, group)
		got := fetched(t, s, o.told(t, 2))
		if slices.Sort(got); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("parked are %v", got)
		}
	})
}

// TestParkingTopicName: dots do not make two groups share a topic, and names that are too long for Kafka are shortened.
func TestParkingTopicName(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	long := strings.Repeat("x", 240)
	for _, at := range [][2]string{{"a.b", "c"}, {"a", "b.c"}, {long, "c"}, {long, "d"}} {
		topic, group := at[1], at[0]
		publish(t, b, topic, texts("x")...)
		s, _ := parking(t, b, topic, group)
		ds := receive(t, s, 1)
		if err := s.Park(within(t), parkAll(ds)); err != nil {
			t.Fatal(err)
		}
		closeSource(t, s)
		s, o := parking(t, b, topic, group)
		if got := fetched(t, s, o.told(t, 1)); !slices.Equal(got, payloads(ds)) {
			t.Errorf("%v: parked are %v", at, got)
		}
	}
}

// TestParkingTopicDeleted: deleting a parking topic loses the messages in it, and nothing else.
func TestParkingTopicDeleted(t *testing.T) {
	c := fakeCluster(t)
	config := fakeConfig(c)
	config.PublishTimeout = time.Second
	b := open(t, config)
	publish(t, b, "t", texts("a", "b")...)
	s, _ := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 2))
	if err := s.Park(within(t), ps[:1]); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteTopic(parkingTopic("t", "g")); err != nil {
		t.Fatal(err)
	}
	ctx := within(t)
	for err := s.Park(ctx, ps[1:]); err != nil; err = s.Park(ctx, ps[1:]) {
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
	closeSource(t, s)
	s, o := parking(t, b, "t", "g")
	if got := fetched(t, s, o.told(t, 1)); !slices.Equal(got, []string{"b"}) {
		t.Errorf("parked are %v", got)
	}
}

// TestManyParked: a source keeps an index of parked messages, and another owner reads it in one
// pass.
func TestManyParked(t *testing.T) {
	const n, size = 5000, 10 << 10
	c := fakeConfig(fakeCluster(t))
	b := open(t, c)
	s, _ := parking(t, b, "t", "g")
	for from := 0; from < n; from += 500 {
		ms := make([]*bus.Message, 500)
		for i := range ms {
			ms[i] = &bus.Message{Key: fmt.Sprint(from + i), Payload: make([]byte, size)}
		}
		publish(t, b, "t", ms...)
		if err := s.Park(within(t), parkAll(receive(t, s, len(ms)))); err != nil {
			t.Fatal(err)
		}
	}
	closeSource(t, s)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	s, o := parking(t, b, "t", "g")
	told := o.told(t, n)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > n*size/3 {
		t.Errorf("the heap has grown by %d KiB for %d messages of %d KiB", grown>>10, n, size>>10)
	}
	tokens := []bus.Token{told[0].Token, told[n/2].Token, told[n-1].Token}
	ds := make([]bus.Delivery, len(tokens))
	if got, err := s.Fetch(within(t), tokens, ds); got != len(tokens) || err != nil {
		t.Fatalf("%d, %v", got, err)
	}
	for i, d := range ds {
		if d.Token != tokens[i] || len(d.Payload) != size {
			t.Errorf("fetched %+v with %d bytes", d.Token, len(d.Payload))
		}
	}
}
