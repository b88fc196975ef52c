package kafka_test

import (
	"context"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

func TestRoundTrip(t *testing.T) {
	b := open(t, realConfig(t))
	topic, group := name("t"), name("g")
	when := time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)
	big := make([]byte, 1<<20)
	for i := range big {
		big[i] = byte(i * 7)
	}
	sent := []*bus.Message{
		{ID: "1", Key: "k", Type: "t", Source: "/s", Subject: "u", Time: when, ContentType: "text/plain", Payload: []byte("x")},
		{ID: "2", Key: "k", Source: "/s", Time: when, Payload: nil},
		{ID: "3", Key: "k", Source: "/s", Time: when, Payload: []byte{}},
		{ID: "4", Key: "k", Source: "/s", Time: when, Payload: []byte{0, 255, 128}, Headers: bus.Headers{
			{Name: "b", Value: "1"}, {Name: "a", Value: "\xff\x00"}, {Name: "b", Value: ""}, {Name: bus.HeaderCorrelationID, Value: "c"}, {Name: "Ä", Value: "2"},
		}},
		{ID: "5", Key: "k", Source: "/s", Time: when, Payload: big},
		{ID: "6", Key: "\xfe\x00k", Source: "/s", Time: when, Payload: []byte("odd key")},
		{ID: "7", Source: "/s", Time: when, Payload: []byte("no key")},
	}
	publish(t, b, topic, sent...)
	s := subscribe(t, b, topic, group, bus.Earliest, newObserver())
	got := receive(t, s, len(sent))
	slices.SortFunc(got, func(a, b bus.Delivery) int { return int(a.ID[0]) - int(b.ID[0]) })
	for i, d := range got {
		if !reflect.DeepEqual(d.Message, sent[i]) {
			t.Errorf("message %d is\n%#v, want\n%#v", i+1, d.Message, sent[i])
		}
	}
	settle(t, s, got...)
}

func TestRestartResumes(t *testing.T) {
	c := realConfig(t)
	topic, group := name("t"), name("g")
	first := open(t, c)
	publish(t, first, topic, texts("1", "2", "3", "4", "5")...)
	s := subscribe(t, first, topic, group, bus.Earliest, newObserver())
	got := receive(t, s, 5)
	settle(t, s, got[0], got[2], got[4])
	closeSource(t, s)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	second := open(t, c)
	s = subscribe(t, second, topic, group, bus.Earliest, newObserver())
	if got := payloads(receive(t, s, 2)); !slices.Equal(got, []string{"2", "4"}) {
		t.Errorf("got %q", got)
	}
	t.Log("resumed after", time.Since(begin))
	publish(t, second, topic, texts("6")...)
	if got := payloads(receive(t, s, 1)); !slices.Equal(got, []string{"6"}) {
		t.Errorf("got %q", got)
	}
}

func TestLatestMissesNothing(t *testing.T) {
	b := open(t, realConfig(t))
	topic, group := name("t"), name("g")
	publish(t, b, topic, texts("before")...)
	s := subscribe(t, b, topic, group, bus.Latest, newObserver())
	publish(t, b, topic, texts("after")...)
	if got := payloads(receive(t, s, 1)); !slices.Equal(got, []string{"after"}) {
		t.Errorf("got %q", got)
	}
}

func TestHandover(t *testing.T) {
	b := open(t, realConfig(t))
	topic, group := name("t"), name("g")
	publish(t, b, topic, texts("1")...)
	one, two := newObserver(), newObserver()
	s1 := subscribe(t, b, topic, group, bus.Earliest, one)
	one.until(t, "the first member has all", owns(8))
	begin := time.Now()
	s2 := subscribe(t, b, topic, group, bus.Earliest, two)
	go func() { _, _ = s1.Receive(context.Background(), make([]bus.Delivery, 1), 1) }()
	two.until(t, "the second member has half", owns(4))
	one.until(t, "the first member has half", owns(4))
	t.Log("shared after", time.Since(begin))
	begin = time.Now()
	closeSource(t, s1)
	t.Log("closed after", time.Since(begin))
	two.until(t, "the second member has all", owns(8))
	t.Log("taken over after", time.Since(begin))
	_ = s2
}
