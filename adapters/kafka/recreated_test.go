package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// foreigner is a client that acts as other programs do: it deletes topics and creates them anew.
type foreigner struct {
	client *kgo.Client
	adm    *kadm.Client
}

func newForeigner(tb testing.TB, c kafka.Config) *foreigner {
	tb.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(c.Brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.UnknownTopicRetries(20))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(client.Close)
	return &foreigner{client: client, adm: kadm.NewClient(client)}
}

func (f *foreigner) create(tb testing.TB, topic string) {
	tb.Helper()
	ctx := within(tb)
	for {
		_, err := f.adm.CreateTopic(ctx, 1, 1, nil, topic)
		if err == nil {
			return
		}
		if !errors.Is(err, kerr.TopicAlreadyExists) || ctx.Err() != nil { // the deletion takes a while
			tb.Fatal(err)
		}
	}
}

func (f *foreigner) remove(tb testing.TB, topic string) {
	tb.Helper()
	f.client.PurgeTopicsFromProducing(topic)
	if _, err := f.adm.DeleteTopic(within(tb), topic); err != nil {
		tb.Fatal(err)
	}
}

// fill publishes n messages with these texts and their numbers.
func (f *foreigner) fill(tb testing.TB, topic, text string, n int) (want []string) {
	tb.Helper()
	var rs []*kgo.Record
	for i := range n {
		want = append(want, fmt.Sprint(text, i))
		rs = append(rs, &kgo.Record{Topic: topic, Value: []byte(want[i])})
	}
	if err := f.client.ProduceSync(within(tb), rs...).FirstErr(); err != nil {
		tb.Fatal(err)
	}
	return want
}

// insistently receives n messages, whatever is reported meanwhile, and returns the reports, too.
func insistently(tb testing.TB, s bus.Source, n int) (got []bus.Delivery, reports []error) {
	tb.Helper()
	ctx := within(tb)
	buf := make([]bus.Delivery, n)
	for len(got) < n {
		k, err := s.Receive(ctx, buf[:n-len(got)], 1<<20)
		if ctx.Err() != nil {
			tb.Fatalf("received %d of %d: %q; reported %v", len(got), n, payloads(got), reports)
		}
		if err != nil {
			reports = append(reports, err)
		}
		got = append(got, buf[:k]...)
	}
	return got, reports
}

// TestTopicMadeAgain: positions belong to a topic, not to its name. All messages of the new topic come.
func TestTopicMadeAgain(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b, f := open(t, c), newForeigner(t, c)
		var o *observer // of the last subscription that began
		begin := func(t *testing.T) (topic, group string, s bus.Source, ds []bus.Delivery) {
			topic, group = name("t"), name("g")
			f.create(t, topic)
			f.fill(t, topic, "old ", 10)
			o = newObserver()
			s = subscribe(t, b, topic, group, bus.Earliest, o)
			return topic, group, s, receive(t, s, 10)
		}
		commit := func(t *testing.T, s bus.Source) error { return s.(driver.Committer).Commit(within(t)) }
		check := func(t *testing.T, s bus.Source, want []string) {
			t.Helper()
			ds, reports := insistently(t, s, len(want))
			if got := payloads(ds); !slices.Equal(got, want) {
				t.Errorf("got %q", got)
			}
			t.Log(reports)
			settle(t, s, ds...)
			if err := commit(t, s); err != nil {
				t.Error(err)
			}
		}
		t.Run("idle", func(t *testing.T) {
			topic, _, s, ds := begin(t)
			settle(t, s, ds...)
			if err := commit(t, s); err != nil {
				t.Fatal(err)
			}
			f.remove(t, topic)
			f.create(t, topic)
			check(t, s, f.fill(t, topic, "new ", 20))
		})
		t.Run("handlers running", func(t *testing.T) {
			topic, group, s, ds := begin(t)
			settle(t, s, ds[0])
			f.remove(t, topic)
			f.create(t, topic)
			want := f.fill(t, topic, "new ", 20)
			for _, d := range ds[1:] { // their settlements are not the new topic's
				_ = s.Settle(within(t), []bus.Token{d.Token})
			}
			insisting := make(chan struct{})
			over := make(chan struct{})
			go func() {
				defer close(over)
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-insisting:
						return
					case <-tick.C:
						_ = commit(t, s)
					}
				}
			}()
			check(t, s, want)
			close(insisting)
			<-over
			closeSource(t, s)
			want = f.fill(t, topic, "newer ", 5)
			check(t, subscribe(t, b, topic, group, bus.Earliest, newObserver()), want)
		})
		t.Run("stopped", func(t *testing.T) {
			topic, group, s, ds := begin(t)
			settle(t, s, ds[:7]...)
			closeSource(t, s)
			old, err := f.adm.FetchOffsetsForTopics(within(t), group, topic)
			if err != nil {
				t.Fatal(err)
			}
			f.remove(t, topic)
			f.create(t, topic)
			// A broker may have missed the deletion, or be told of the position late.
			var late kadm.Offsets
			for _, o := range old[topic] {
				late.Add(kadm.Offset{Topic: topic, Partition: o.Partition, At: o.At, LeaderEpoch: o.LeaderEpoch, Metadata: o.Metadata})
			}
			committer, ctx := newForeigner(t, c).adm, within(t)
			for {
				err := committer.CommitAllOffsets(ctx, group, late)
				if err == nil {
					break
				}
				if !errors.Is(err, kerr.UnknownTopicOrPartition) || ctx.Err() != nil { // the new topic is not known everywhere yet
					t.Fatal(err)
				}
			}
			want := f.fill(t, topic, "new ", 20)
			check(t, subscribe(t, b, topic, group, bus.Latest, newObserver()), want)
		})
		t.Run("no topic for a while", func(t *testing.T) {
			topic, group, s, ds := begin(t)
			settle(t, s, ds...)
			f.remove(t, topic)
			removeMembers(t, b, group)
			if err := o.toldOf(t, "the topic cannot be found"); !errors.Is(err, bus.ErrNotFound) {
				t.Error(err)
			}
			f.create(t, topic)
			check(t, s, f.fill(t, topic, "new ", 20))
		})
	})
}

// TestPartitionsAreAdded: they are read soon, from their beginning.
func TestPartitionsAreAdded(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b, f := open(t, c), newForeigner(t, c)
		topic := name("t")
		f.create(t, topic)
		f.fill(t, topic, "old ", 1)
		s := subscribe(t, b, topic, name("g"), bus.Latest, newObserver())
		if _, err := f.adm.CreatePartitions(within(t), 2, topic); err != nil {
			t.Fatal(err)
		}
		ctx := within(t)
		for {
			f.client.PurgeTopicsFromProducing(topic) // it knows of one partition
			err := f.client.ProduceSync(ctx, &kgo.Record{Topic: topic, Partition: 2, Value: []byte("new")}).FirstErr()
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		if ds, _ := insistently(t, s, 1); string(ds[0].Payload) != "new" || ds[0].Lane != 2 {
			t.Errorf("got %q", payloads(ds))
		}
	})
}

// TestTopicMadeAgainUnderLoad: members that share a topic, and settle as they go, miss nothing of the new one.
func TestTopicMadeAgainUnderLoad(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b, f := open(t, c), newForeigner(t, c)
		topic, group := name("t"), name("g")
		f.create(t, topic)
		f.fill(t, topic, "old ", 500)
		ctx, cancel := context.WithCancel(within(t))
		defer cancel()
		got := make(chan string, 10_000)
		var wg sync.WaitGroup
		for range 2 {
			s := subscribe(t, b, topic, group, bus.Earliest, newObserver())
			wg.Go(func() {
				buf := make([]bus.Delivery, 10)
				for ctx.Err() == nil {
					n, _ := s.Receive(ctx, buf, 1<<20)
					for _, d := range buf[:n] {
						got <- string(d.Payload)
						_ = s.Settle(ctx, []bus.Token{d.Token})
					}
				}
			})
		}
		for text := ""; text != "old 100"; { // in the midst of it
			select {
			case text = <-got:
			case <-ctx.Done():
				t.Fatal("nothing came")
			}
		}
		f.remove(t, topic)
		f.create(t, topic)
		missing := map[string]bool{}
		for _, text := range f.fill(t, topic, "new ", 500) {
			missing[text] = true
		}
		for len(missing) > 0 {
			select {
			case text := <-got:
				delete(missing, text)
			case <-ctx.Done():
				t.Fatalf("%d messages did not come", len(missing))
			}
		}
		cancel()
		wg.Wait()
	})
}
