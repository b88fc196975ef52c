package kafka_test

import (
	"errors"
	"slices"
	"strings"
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

// topicWith makes a topic of one partition with these settings.
func topicWith(tb testing.TB, b *bus.Bus, topic string, configs ...string) {
	tb.Helper()
	set := map[string]*string{}
	for i := 0; i < len(configs); i += 2 {
		set[configs[i]] = &configs[i+1]
	}
	client, _ := bus.As[*kgo.Client](b)
	if _, err := kadm.NewClient(client).CreateTopic(within(tb), 1, 1, set, topic); err != nil {
		tb.Fatal(err)
	}
}

// inEachGuarantee runs a test with sources of both kinds.
func inEachGuarantee(t *testing.T, f func(t *testing.T, subscribe func(b *bus.Bus, topic, group string) (driver.ParkingSource, *parkingObserver))) {
	t.Run("at least once", func(t *testing.T) {
		f(t, func(b *bus.Bus, topic, group string) (driver.ParkingSource, *parkingObserver) {
			return parking(t, b, topic, group)
		})
	})
	t.Run("exactly once", func(t *testing.T) {
		f(t, func(b *bus.Bus, topic, group string) (driver.ParkingSource, *parkingObserver) {
			s, o := transactional(t, b, topic, group)
			return s.(driver.ParkingSource), o
		})
	})
}

const large = 4 << 20 // more than our largest message

// largeAmongSmall publishes three messages. The second is another program's, and larger than ours
// may be.
func largeAmongSmall(t *testing.T, b *bus.Bus, c kafka.Config, topic string) {
	t.Helper()
	topicWith(t, b, topic, "max.message.bytes", "6000000")
	client := raw(t, c, kgo.ProducerBatchMaxBytes(5<<20), kgo.ProducerBatchCompression(kgo.NoCompression()))
	for _, value := range [][]byte{[]byte("a"), make([]byte, large), []byte("c")} {
		if err := client.ProduceSync(within(t), &kgo.Record{Topic: topic, Key: []byte("k"), Value: value}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

func sizes(ds []bus.Delivery) []int {
	n := make([]int, len(ds))
	for i := range ds {
		n[i] = len(ds[i].Payload)
	}
	return n
}

// TestLargeIsStored: the parking topic and the poison queue take every message that the topic
// takes, whatever the bus's own limit is.
func TestLargeIsStored(t *testing.T) {
	inEachGuarantee(t, func(t *testing.T, subscribe func(b *bus.Bus, topic, group string) (driver.ParkingSource, *parkingObserver)) {
		eachBroker(t, func(t *testing.T, c kafka.Config) {
			c.Compression = "none"
			b := open(t, c)
			topic, group := name("t"), name("g")
			largeAmongSmall(t, b, c, topic)
			s, _ := subscribe(b, topic, group)
			if err := s.Park(within(t), parkAll(receiveLarge(t, s, 3))); err != nil {
				t.Fatal(err)
			}
			closeSource(t, s)
			s, o := subscribe(b, topic, group)
			told := o.told(t, 3)
			ds := make([]bus.Delivery, 3)
			n, err := s.Fetch(within(t), []bus.Token{told[0].Token, told[1].Token, told[2].Token}, ds)
			if err != nil || !slices.Equal(sizes(ds[:n]), []int{1, large, 1}) {
				t.Fatalf("fetched %d: %v, %v", n, sizes(ds), err)
			}
			store := poisonStore(t, b, group)
			if err := store.Put(within(t), entry("small", ds[0].Message), entry("large", ds[1].Message)); err != nil {
				t.Fatal(err)
			}
			if all := list(t, store); len(all) != 2 || len(all[1].Message.Payload) != large {
				t.Errorf("%d entries: %+v", len(all), all[0].ID)
			}
		})
	})
}

// receiveLarge is receive without a bound in bytes.
func receiveLarge(tb testing.TB, s bus.Source, n int) []bus.Delivery {
	tb.Helper()
	var got []bus.Delivery
	for len(got) < n {
		buf := make([]bus.Delivery, n-len(got))
		k, err := s.Receive(within(tb), buf, 1<<30)
		if err != nil {
			tb.Fatal(err)
		}
		got = append(got, buf[:k]...)
	}
	return got
}

// TestLargeIsRefusedAlone: where the parking topic's limit cannot be raised, messages too large for
// it are refused for good, and the others are parked.
func TestLargeIsRefusedAlone(t *testing.T) {
	inEachGuarantee(t, func(t *testing.T, subscribe func(b *bus.Bus, topic, group string) (driver.ParkingSource, *parkingObserver)) {
		for _, batches := range []bool{false, true} { // refused by the client, by the broker with all that is in the batch
			t.Run(map[bool]string{false: "by the client", true: "by the broker"}[batches], func(t *testing.T) {
				cluster := fakeCluster(t)
				c := fakeConfig(cluster)
				c.Compression = "none"
				b := open(t, c)
				largeAmongSmall(t, b, c, "t")
				topicWith(t, b, parkingTopic("t", "g"), "max.message.bytes", "1000000", "cleanup.policy", "compact")
				cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.IncrementalAlterConfigs}, Err: kerr.TopicAuthorizationFailed, Resource: parkingTopic("t", "g"), Count: -1})
				if batches { // its limit is not known
					cluster.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.DescribeConfigs}, Err: kerr.TopicAuthorizationFailed, Count: -1})
					c.MaxMessage = 8 << 20
					b = open(t, c)
				}
				s, _ := subscribe(b, "t", "g")
				ps := parkAll(receiveLarge(t, s, 3))
				park := func(ps []driver.Parking) []error {
					t.Helper()
					ctx := within(t)
					for {
						var pe *bus.PublishError
						if err := s.Park(ctx, ps); errors.As(err, &pe) {
							return pe.Errs
						} else if !bus.IsRetryable(err) || ctx.Err() != nil {
							t.Fatal(err)
						}
					}
				}
				if errs := park(ps[1:2]); bus.IsRetryable(errs[0]) {
					t.Fatalf("alone: %v", errs)
				}
				errs := park(ps)
				if errs[0] != nil || errs[2] != nil || !errors.Is(errs[1], bus.ErrTooLarge) || bus.IsRetryable(errs[1]) {
					t.Errorf("got %v", errs)
				}
				if !ps[0].Token.Parked || ps[1].Token.Parked || !ps[2].Token.Parked {
					t.Errorf("the tokens are %+v, %+v, %+v", ps[0].Token, ps[1].Token, ps[2].Token)
				}
				closeSource(t, s)
				s, o := subscribe(b, "t", "g")
				if got := fetched(t, s, o.told(t, 2)); !slices.Equal(got, []string{"a", "c"}) {
					t.Errorf("parked are %q", got)
				}
				if got := receiveLarge(t, s, 1); len(got[0].Payload) != large {
					t.Errorf("received %d bytes", len(got[0].Payload))
				}
			})
		}
	})
}

// TestStoreThatExpires: if a store's topic deletes entries that nobody has removed, the store is
// refused, with the reason, until the topic is mended. Nothing is lost meanwhile.
func TestStoreThatExpires(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		poison := "millrace.poison." + group
		topicWith(t, b, topic)
		topicWith(t, b, parkingTopic(topic, group), "cleanup.policy", "delete")
		topicWith(t, b, poison, "cleanup.policy", "compact,delete")
		publish(t, b, topic, texts("a")...)
		s, _ := parking(t, b, topic, group)
		ps := parkAll(receive(t, s, 1))
		if err := s.Park(within(t), ps); err == nil || !strings.Contains(err.Error(), "cleanup.policy=compact") || !bus.IsRetryable(err) {
			t.Errorf("parked: %v", err)
		}
		store := poisonStore(t, b, group)
		e := entry("1", &bus.Message{ID: "1", Source: "/s", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)})
		if err := store.Put(within(t), e); err == nil || !strings.Contains(err.Error(), "cleanup.policy=compact") {
			t.Errorf("poisoned: %v", err)
		}
		client, _ := bus.As[*kgo.Client](b)
		compact := "compact"
		for _, name := range []string{parkingTopic(topic, group), poison} {
			altered, err := kadm.NewClient(client).AlterTopicConfigs(within(t), []kadm.AlterConfig{{Op: kadm.SetConfig, Name: "cleanup.policy", Value: &compact}}, name)
			if err != nil || altered[0].Err != nil {
				t.Fatal(err, altered)
			}
		}
		ctx := within(t)
		for err := s.Park(ctx, ps); err != nil; err = s.Park(ctx, ps) { // the setting is not everywhere at once
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		for err := store.Put(ctx, e); err != nil; err = store.Put(ctx, e) {
			if ctx.Err() != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestGroupsWhoseStoresCollide: two groups have names that differ in dots and underscores only, so
// the second one's poison queue or parking topic cannot be made. The second group is refused at the
// start, with the reason. The first group is not.
func TestGroupsWhoseStoresCollide(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, id := name("t"), bus.NewID()
		publish(t, b, topic, texts("a")...)
		if err := poisonStore(t, b, "a.b-"+id).Put(within(t), entry("1", &bus.Message{ID: "1", Source: "/s"})); err != nil {
			t.Fatal(err)
		}
		s := bus.Subscription{Topic: topic, Group: "a_b-" + id, InFlight: 1, Bytes: 1}
		source, err := b.Driver().Subscribe(within(t), s, newObserver())
		if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "millrace.poison.a_b-") {
			t.Errorf("got %v", err)
		}
		if strings.HasSuffix(t.Name(), "/real") && !strings.Contains(err.Error(), "millrace.poison.a.b-"+id) { // the fake has no words
			t.Errorf("got %v", err)
		}
		if source != nil {
			closeSource(t, source)
		}
		subscribe(t, b, topic, "a.b-"+id, bus.Earliest, newObserver())
	})
}
