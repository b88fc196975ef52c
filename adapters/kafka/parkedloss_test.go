package kafka_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// spread are messages of so many keys.
func spread(n int) []*bus.Message {
	ms := make([]*bus.Message, n)
	for i := range ms {
		ms[i] = &bus.Message{Key: string(rune('a' + i)), Payload: []byte{byte('a' + i)}}
	}
	return ms
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

// TestParkingTopicUnknownForAMoment: a broker that does not know the parking topic, or does not
// answer for a partition, proves nothing about parked messages.
func TestParkingTopicUnknownForAMoment(t *testing.T) {
	topic := parkingTopic("t", "g")
	for name, fault := range map[string]kfake.Fault{
		"one broker has not heard of it":      {Keys: []kmsg.Key{kmsg.Metadata}, Topic: topic, Nodes: []int32{0}, Err: kerr.UnknownTopicOrPartition, Count: -1},
		"one partition is unknown for once":   {Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Partitions: []int32{1}, Err: kerr.UnknownTopicOrPartition},
		"all partitions are unknown at first": {Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Err: kerr.UnknownTopicOrPartition, Count: 2},
	} {
		t.Run(name, func(t *testing.T) {
			c := fakeCluster(t)
			b := open(t, fakeConfig(c))
			publish(t, b, "t", spread(8)...)
			s, _ := parking(t, b, "t", "g")
			if err := s.Park(within(t), parkAll(receive(t, s, 8))); err != nil {
				t.Fatal(err)
			}
			closeSource(t, s)
			later := open(t, fakeConfig(c))
			c.Fault(fault)
			s, o := parking(t, later, "t", "g")
			o.until(t, "all lanes are assigned", owns(4))
			publish(t, b, "t", &bus.Message{Key: "a", Payload: []byte("next")})
			if got := nextText(t, s); got != "next" {
				t.Errorf("received %q", got)
			}
			o.mu.Lock()
			told := slices.Clone(o.parked) // before the lane's next message
			o.mu.Unlock()
			if got := sorted(fetched(t, s, told)); !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f", "g", "h"}) {
				t.Errorf("parked are %v", got)
			}
		})
	}
}

// nextText is the next message's payload, whatever Receive reports before it.
func nextText(tb testing.TB, s bus.Source) string {
	tb.Helper()
	ds, _ := until(tb, s)
	return string(ds[0].Payload)
}

// TestOwnRecordsAreNotAdopted: when the log is read for a command, messages that this owner has
// parked and settled are not taken for late records.
func TestOwnRecordsAreNotAdopted(t *testing.T) {
	b := open(t, fakeConfig(fakeCluster(t)))
	publish(t, b, "t", texts("a", "b")...)
	s, o := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 2))
	if err := s.Park(within(t), ps[:1]); err != nil {
		t.Fatal(err)
	}
	injector, _ := bus.As[driver.Injector](b)
	if err := injector.Inject(within(t), "t", "g", []driver.Parking{{Delivery: bus.Delivery{Message: &bus.Message{ID: "1", Key: "k", Payload: []byte("injected")}}, Due: time.Now().Add(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	if err := s.Park(within(t), ps[1:]); err != nil {
		t.Fatal(err)
	}
	settle(t, s, ps[1].Delivery)
	if got := fetched(t, s, o.told(t, 1)); !slices.Equal(got, []string{"injected"}) {
		t.Errorf("told of %v", got)
	}
	closeSource(t, s)
	s, o = parking(t, b, "t", "g")
	if got := fetched(t, s, o.told(t, 2)); !slices.Equal(got, []string{"a", "injected"}) {
		t.Errorf("parked are %v", got)
	}
}

// TestFetchBehindOpenTransaction: a transaction that somebody has left open on the parking log
// holds up nothing that is parked behind it.
func TestFetchBehindOpenTransaction(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("a", "b")...)
		s, _ := parking(t, b, topic, group)
		ps := parkAll(receive(t, s, 2))
		if err := s.Park(within(t), ps[:1]); err != nil {
			t.Fatal(err)
		}
		writer := raw(t, c, kgo.TransactionalID(name("x")))
		if err := writer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := writer.ProduceSync(within(t), &kgo.Record{Topic: parkingTopic(topic, group), Partition: ps[0].Lane, Key: []byte("7"), Value: []byte("open")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := s.Park(within(t), ps[1:]); err != nil {
			t.Fatal(err)
		}
		if got := fetched(t, s, []driver.Parked{{Token: ps[0].Token}, {Token: ps[1].Token}}); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("fetched %v", got)
		}
		if err := writer.EndTransaction(within(t), kgo.TryAbort); err != nil {
			t.Error(err)
		}
	})
}

// TestFetchFromALateLeader: an empty answer says nothing of a record: after a change of leaders the
// new one may not know at once how far the log reaches.
func TestFetchFromALateLeader(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", texts("a")...)
	s, _ := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 1))
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	id := c.TopicInfo(parkingTopic("t", "g")).TopicID
	answers := 0
	c.ControlKey(int16(kmsg.Fetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		fetch := req.(*kmsg.FetchRequest)
		if len(fetch.Topics) != 1 || fetch.Topics[0].TopicID != id {
			return nil, nil, false
		}
		if answers++; answers > 2 {
			return nil, nil, false
		}
		resp := fetch.ResponseKind().(*kmsg.FetchResponse)
		topic := kmsg.NewFetchResponseTopic()
		topic.TopicID = id
		p := kmsg.NewFetchResponseTopicPartition()
		p.Partition, p.HighWatermark = fetch.Topics[0].Partitions[0].Partition, fetch.Topics[0].Partitions[0].FetchOffset
		topic.Partitions = append(topic.Partitions, p)
		resp.Topics = append(resp.Topics, topic)
		return resp, nil, true
	})
	if got := fetched(t, s, []driver.Parked{{Token: ps[0].Token}}); !slices.Equal(got, []string{"a"}) {
		t.Errorf("fetched %v after %d empty answers", got, answers)
	}
}

// TestParkThatCannotStopsNothing: where nothing can be parked, messages are settled as ever.
func TestParkThatCannotStopsNothing(t *testing.T) {
	f := newFake(t)
	f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.CreateTopics}, Topic: parkingTopic("t", "g"), Err: kerr.PolicyViolation, Count: -1})
	publish(t, f.bus, "t", numbers(0, 10)...)
	s, _ := parking(t, f.bus, "t", "g")
	ds := receive(t, s, 10)
	if err := s.Park(within(t), parkAll(ds[9:])); !errors.Is(err, kerr.PolicyViolation) || !bus.IsRetryable(err) {
		t.Errorf("got %v", err)
	}
	settle(t, s, ds[:9]...)
	f.committed(t, "g", at(9))
}

// TestRemovalsHoldUpNoCommits: while the parking log cannot be written to, positions are committed;
// removals come later.
func TestRemovalsHoldUpNoCommits(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	s, _ := parking(t, f.bus, "t", "g")
	ds := receive(t, s, 10)
	ps := parkAll(ds[:1])
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	away := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: parkingTopic("t", "g"), Err: kerr.NotEnoughReplicas, Count: -1})
	settle(t, s, ps[0].Delivery)
	if err := away.Wait(within(t), 1); err != nil {
		t.Fatal(err)
	}
	settle(t, s, ds[1:]...)
	f.committed(t, "g", at(10))
	away.Remove()
	awaitRecord(t, kafka.Config{Brokers: f.ListenAddrs()}, parkingTopic("t", "g"), ps[0].Lane, func(r *kgo.Record) bool { return r.Value == nil })
}

// TestOneLaneCannotBeFetched: while a lane's leader is away, its parked messages hold up no others,
// and they are there when the leader is back.
func TestOneLaneCannotBeFetched(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	publish(t, b, "t", spread(8)...)
	s, _ := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 8))
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	tokens := make([]bus.Token, len(ps))
	for i := range ps {
		tokens[i] = ps[i].Token
	}
	away := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Fetch}, Topic: parkingTopic("t", "g"), Partitions: []int32{ps[0].Lane}, Err: kerr.NotLeaderForPartition, Count: -1})
	dst := make([]bus.Delivery, len(tokens))
	for try := range 3 {
		begin := time.Now()
		n, err := s.Fetch(within(t), tokens, dst)
		pe, ok := errors.AsType[*bus.PublishError](err)
		if !ok || len(pe.Errs) != len(tokens) {
			t.Fatalf("got %d, %v", n, err)
		}
		got := dst[:n]
		for i, token := range tokens {
			switch of := pe.Errs[i]; {
			case token.Lane == ps[0].Lane:
				if !errors.Is(of, kerr.NotLeaderForPartition) || !bus.IsRetryable(of) {
					t.Errorf("message %d: %v", i, of)
				}
			case of != nil || len(got) == 0 || got[0].Token != token || string(got[0].Payload) != string(ps[i].Payload):
				t.Fatalf("message %d is missing: %v", i, of)
			default:
				got = got[1:]
			}
		}
		if took := time.Since(begin); try > 0 && took > time.Second {
			t.Errorf("the others took %v", took)
		}
	}
	if n, err := s.Fetch(within(t), tokens[:1], dst); n != 0 || !errors.Is(err, kerr.NotLeaderForPartition) {
		t.Errorf("alone: %d, %v", n, err)
	}
	away.Remove()
	ctx := within(t)
	n, err := 0, error(nil)
	for n < len(tokens) && ctx.Err() == nil {
		n, err = s.Fetch(ctx, tokens, dst)
	}
	if err != nil || n != len(tokens) {
		t.Errorf("got %d, %v", n, err)
	}
}
