package kafka_test

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func poisonStore(tb testing.TB, b *bus.Bus, group string) driver.PoisonStore {
	tb.Helper()
	s, err := driver.Of(b).Poison(within(tb), group)
	if err != nil {
		tb.Fatal(err)
	}
	return s
}

func list(tb testing.TB, s driver.PoisonStore) []driver.PoisonEntry {
	tb.Helper()
	var all []driver.PoisonEntry
	for e, err := range s.List(within(tb)) {
		if err != nil {
			tb.Fatal(err)
		}
		all = append(all, e)
	}
	return all
}

func entry(id string, m *bus.Message) driver.PoisonEntry {
	when := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	return driver.PoisonEntry{
		ID: id, Message: m, Topic: "orders", Group: "billing", Handler: "charge", Lane: 3, Position: 42,
		Failure: bus.Failure{Class: "panic", Text: "boom ä", Stack: strings.Repeat("frame\n", 100), Attempts: 5, First: when, Last: when.Add(time.Second)},
		Host:    "pod-1", Time: when.Add(time.Minute),
	}
}

func TestPoisonStore(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		c.Partitions = 0 // the store's topic is made in any case
		b := open(t, c)
		group := name("g")
		s := poisonStore(t, b, group)
		if all := list(t, s); len(all) > 0 {
			t.Errorf("a store that was never written holds %v", all)
		}
		when := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		big := make([]byte, kafka.DefaultMaxMessage-2000)
		entries := []driver.PoisonEntry{
			entry("a", &bus.Message{ID: "1", Key: "k\xff", Type: "t", Source: "/s", Subject: "u", Time: when, ContentType: "c", Headers: bus.Headers{{Name: "x", Value: "1"}, {Name: "x", Value: "\x80"}, {Name: "correlationid", Value: "y"}}, Payload: []byte("p")}),
			entry("tombstone", &bus.Message{ID: "2", Key: "k", Source: "/s", Time: when}),
			entry("empty", &bus.Message{ID: "3", Source: "/s", Time: when, Payload: []byte{}}),
			entry("big", &bus.Message{ID: "4", Source: "/s", Time: when, Payload: big}),
			entry("gone", &bus.Message{ID: "5", Source: "/s", Time: when, Payload: []byte("x")}),
		}
		if err := s.Put(within(t), entries...); err != nil {
			t.Fatal(err)
		}
		if got := list(t, s); !reflect.DeepEqual(got, entries) {
			t.Errorf("got\n%+v, want\n%+v", got, entries)
		}
		replaced := entry("a", &bus.Message{ID: "1", Source: "/s", Time: when, Payload: []byte("again")})
		replaced.Failure.Attempts = 10
		if err := s.Put(within(t), replaced); err != nil {
			t.Fatal(err)
		}
		if err := s.Remove(within(t), "gone", "never was"); err != nil {
			t.Fatal(err)
		}
		// Another process sees the same, in the order in which entries first came.
		want := []driver.PoisonEntry{replaced, entries[1], entries[2], entries[3]}
		other := poisonStore(t, open(t, c), group)
		if got := list(t, other); !reflect.DeepEqual(got, want) {
			t.Errorf("got\n%+v, want\n%+v", got, want)
		}
		if err := s.Remove(within(t), "a", "tombstone", "empty", "big"); err != nil {
			t.Fatal(err)
		}
		if got := list(t, other); len(got) > 0 {
			t.Errorf("got %v", got)
		}
		if err := s.Put(within(t), entries[2]); err != nil {
			t.Fatal(err)
		}
		if got := list(t, other); len(got) != 1 {
			t.Errorf("got %v", got)
		}
	})
}

func TestPoisonListIsLong(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	s := poisonStore(t, b, "g")
	var entries []driver.PoisonEntry
	for i := range 3000 {
		entries = append(entries, entry(fmt.Sprint(i), &bus.Message{ID: "1", Source: "/s", Payload: make([]byte, 3000)}))
	}
	if err := s.Put(within(t), entries...); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, e := range list(t, s) {
		ids = append(ids, e.ID)
	}
	if !slices.EqualFunc(ids, entries, func(id string, e driver.PoisonEntry) bool { return id == e.ID }) {
		t.Errorf("%d entries: %v", len(ids), ids[:min(len(ids), 10)])
	}
	n := 0
	for _, err := range s.List(within(t)) { // ends when the caller has seen enough
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 5 {
			break
		}
	}
	ctx, cancel := context.WithCancel(within(t))
	cancel()
	n = 0
	for _, err := range s.List(ctx) {
		if n++; err == nil || n > 1 {
			t.Errorf("%d: %v", n, err)
		}
	}
	if info := c.TopicInfo("millrace.poison.g"); info == nil || len(c.PartitionInfos("millrace.poison.g")) != 1 {
		t.Errorf("%+v", info)
	}
}

// TestPoisonListWaitsForTheLeader: a store that was created just now, or whose leader has moved, is
// listed as soon as its leader answers.
func TestPoisonListWaitsForTheLeader(t *testing.T) {
	const topic = "millrace.poison.g"
	for name, fault := range map[string]kfake.Fault{
		"asked for the ends, a broker is not the leader":     {Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Err: kerr.NotLeaderForPartition, Count: 2},
		"asked for the ends, the leader has not heard of it": {Keys: []kmsg.Key{kmsg.ListOffsets}, Topic: topic, Err: kerr.UnknownTopicOrPartition, Count: 2},
		"asked for records, a broker is not the leader":      {Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.NotLeaderForPartition, Count: 2},
		"asked for records, the leader has not heard of it":  {Keys: []kmsg.Key{kmsg.Fetch}, Topic: topic, Err: kerr.UnknownTopicOrPartition, Count: 2},
	} {
		t.Run(name, func(t *testing.T) {
			c := fakeCluster(t)
			s := poisonStore(t, open(t, fakeConfig(c)), "g")
			want := []driver.PoisonEntry{entry("a", &bus.Message{ID: "1", Source: "/s", Time: time.Unix(1, 0).UTC(), Payload: []byte("x")})}
			if err := s.Put(within(t), want...); err != nil {
				t.Fatal(err)
			}
			c.Fault(fault)
			if got := list(t, s); !reflect.DeepEqual(got, want) {
				t.Errorf("got\n%+v, want\n%+v", got, want)
			}
		})
	}
}
