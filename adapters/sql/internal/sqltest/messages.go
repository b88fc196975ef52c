package sqltest

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

func roundTrip(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	big := make([]byte, 1<<20)
	for i := range big {
		big[i] = byte(i * i >> 8)
	}
	msgs := []*bus.Message{
		{Payload: nil},
		{Payload: []byte{}},
		{Payload: all, Key: string(all[:250])},
		{Payload: big, Key: "ключ", Type: "заказ", Subject: "предмет", ContentType: "application/json; charset=utf-8"},
		{Payload: []byte("x"), Headers: bus.Headers{{Name: "a", Value: "1"}, {Name: "b", Value: ""}, {Name: "a", Value: "2"}, {Name: "A", Value: "3"}}},
		{Headers: bus.Headers{{Name: "bin", Value: string(all)}, {Name: "\"quoted\\\n", Value: "\x00\x1f\x7f\"\\\u2028"}, {Name: "correlationid", Value: "c"}}},
		{Time: time.Date(2024, 2, 29, 23, 59, 59, 123456789, time.FixedZone("x", 3600))},
		{Time: time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC)},
		{Time: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC), Headers: bus.Headers{{Name: "h", Value: "v"}}},
		{Time: time.Unix(0, 0)},
		{Time: time.Unix(-1, 999)},
		{ID: "own id", Source: "/own", Key: " key with trailing blank "},
	}
	for i, m := range msgs {
		m.Headers = append(m.Headers, bus.Header{Name: "number", Value: fmt.Sprint(i)})
	}
	want := make([]bus.Message, len(msgs))
	Publish(t, b, topic, msgs...)
	for i, m := range msgs {
		want[i] = *m
	}
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	for _, d := range Receive(t, s, len(msgs)) {
		var i int
		if _, err := fmt.Sscan(d.Headers.Get("number"), &i); err != nil {
			t.Fatal(err)
		}
		got := *d.Message
		if !got.Time.Equal(want[i].Time) {
			t.Errorf("message %d: time %v, want %v", i, got.Time, want[i].Time)
		}
		got.Time = want[i].Time
		if !reflect.DeepEqual(got, want[i]) {
			t.Errorf("message %d:\n got %#v\nwant %#v", i, got, want[i])
		}
		if d.Topic != topic || d.Attempt != 1 || d.Epoch == 0 {
			t.Errorf("message %d: %v %d %d", i, d.Topic, d.Attempt, d.Epoch)
		}
	}
}

// foreignRow puts rows into the table as no driver would.
func foreignRow(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	Publish(t, b, topic, Texts("a", "b")...)
	db.exec(t, "UPDATE "+db.logOf(t, topic)+" SET id = '', headers = '{\"not\": \"ours\"' WHERE "+db.ofTopic(t, topic))
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	for _, d := range Receive(t, s, 2) {
		if want := fmt.Sprintf("%s/%d/%d", topic, d.Lane, d.Position); d.ID != want {
			t.Errorf("id %q, want %q", d.ID, want)
		}
		if got := d.Headers.Get("headers"); got != `{"not": "ours"` {
			t.Errorf("headers %q", d.Headers)
		}
	}
}

func receiveBounds(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	var msgs []*bus.Message
	for i := range 20 {
		size := 1000
		if i == 10 {
			size = 300_000
		}
		msgs = append(msgs, &bus.Message{Key: "k", Payload: make([]byte, size)})
	}
	Publish(t, b, topic, msgs...)
	s, err := b.Driver().Subscribe(bounded(t), bus.Subscription{Topic: topic, Group: "g", InFlight: 3, Bytes: 5000}, NewObserver())
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]bus.Delivery, 8)
	var last int64
	for n := 0; n < len(msgs); {
		k, err := s.Receive(bounded(t), buf, 4000)
		if err != nil {
			t.Fatal(err)
		}
		bytes := 0
		for _, d := range buf[:k] {
			if d.Position <= last {
				t.Fatalf("position %d after %d", d.Position, last)
			}
			last = d.Position
			bytes += d.Size()
		}
		if bytes > 4000 && k > 1 {
			t.Errorf("%d messages of %d bytes", k, bytes)
		}
		n += k
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Receive(ctx, buf, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("receive under a context that has ended: %v", err)
	}
}

func settleErrors(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	Publish(t, b, topic, Texts("a", "b", "c")...)
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	ds := Receive(t, s, 3)
	stale := ds[0].Token
	stale.Epoch++
	beyond := ds[0].Token
	beyond.Lane = 10_000
	err := s.Settle(bounded(t), []bus.Token{stale, ds[1].Token, beyond, {Lane: -1}})
	if !errors.Is(err, bus.ErrStale) || !strings.Contains(err.Error(), "3 of 4") {
		t.Errorf("stale tokens: %v", err)
	}
	Settle(t, s, ds[1]) // again is no error
	Close(t, s)
	if err := s.Settle(bounded(t), tokens(ds)); !isClosed(err) {
		t.Errorf("settle after close: %v", err)
	}
	s = Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	want := Payloads([]bus.Delivery{ds[0], ds[2]})
	if got := Payloads(Receive(t, s, 2)); !slices.Equal(got, want) {
		t.Errorf("again came %v, want %v", got, want)
	}
}

func resumeAtTheWindow(t *testing.T, db Database) {
	topic := Topic()
	var unsettled []string
	{
		b, err := db.open()
		if err != nil {
			t.Fatal(err)
		}
		Publish(t, b, topic, Texts(numbers(500)...)...)
		s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
		var settled []bus.Delivery
		for i, d := range Receive(t, s, 300) {
			if i%3 == 0 {
				settled = append(settled, d)
			}
		}
		Settle(t, s, settled...)
		done := map[string]bool{}
		for _, d := range settled {
			done[string(d.Payload)] = true
		}
		for _, text := range numbers(500) {
			if !done[text] {
				unsettled = append(unsettled, text)
			}
		}
		if err := b.Close(); err != nil { // the source too
			t.Fatal(err)
		}
	}
	b := db.Open(t)
	s := Subscribe(t, b, topic, "g", bus.Latest, NewObserver()) // the start does not matter to a group that has begun
	ds := Receive(t, s, len(unsettled))
	if got := Payloads(ds); !slices.Equal(got, unsettled) {
		t.Errorf("%d came again, want exactly the %d that were not settled", len(got), len(unsettled))
	}
	Settle(t, s, ds...)
	Nothing(t, b, topic, s)
}

func startPositions(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	for _, text := range []string{"a", "b", "c"} {
		Publish(t, b, topic, Texts(text)...)
	}
	// The database's clock, which may differ from ours.
	middle := db.clock(t, topic)
	latest := Subscribe(t, b, topic, "latest", bus.Latest, NewObserver())
	for _, text := range []string{"d", "e"} {
		Publish(t, b, topic, Texts(text)...)
	}
	at := Subscribe(t, b, topic, "at", bus.StartAt(middle), NewObserver())
	before := Subscribe(t, b, topic, "before", bus.StartAt(middle.Add(-time.Hour)), NewObserver())
	after := Subscribe(t, b, topic, "after", bus.StartAt(middle.Add(time.Hour)), NewObserver())
	earliest := Subscribe(t, b, topic, "earliest", bus.Earliest, NewObserver())
	all := []string{"a", "b", "c", "d", "e"}
	for _, test := range []struct {
		name string
		s    bus.Source
		want []string
	}{
		{"latest", latest, all[3:]},
		{"at", at, all[3:]},
		{"before", before, all},
		{"earliest", earliest, all},
	} {
		if got := Payloads(Receive(t, test.s, len(test.want))); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	for _, s := range []bus.Source{latest, at, before, after, earliest} {
		Nothing(t, b, topic, s)
		for _, other := range []bus.Source{latest, at, before, after, earliest} {
			if other != s {
				Settle(t, other, Receive(t, other, 1)...)
			}
		}
	}
	_, err := b.Driver().Subscribe(bounded(t), bus.Subscription{Topic: topic, Group: "zero", Start: bus.StartAt(time.Time{}), InFlight: 1, Bytes: 1}, NewObserver())
	if !errors.Is(err, bus.ErrInvalid) {
		t.Errorf("start at the zero time: %v", err)
	}
}

// manyPublishers publishes from many goroutines of several buses, while a group reads along: it
// must get all messages, those of a goroutine in its order.
func manyPublishers(t *testing.T, db Database) {
	const buses, writers, each = 3, 8, 60
	topic := Topic()
	reader := db.Open(t)
	s := Subscribe(t, reader, topic, "g", bus.Earliest, NewObserver())
	var writing sync.WaitGroup
	for i := range buses {
		b := db.Open(t)
		for j := range writers {
			writing.Go(func() {
				key := fmt.Sprintf("%d-%d", i, j)
				for n := 0; n < each; {
					var msgs []*bus.Message
					for k := 0; k <= j && n < each; k++ {
						msgs = append(msgs, &bus.Message{Key: key, Payload: fmt.Append(nil, n)})
						n++
					}
					if err := b.PublishMessages(bounded(t), topic, msgs...); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	next := map[string]int{}
	for range buses * writers * each {
		d := Receive(t, s, 1)[0]
		if want := fmt.Sprint(next[d.Key]); want != string(d.Payload) {
			t.Fatalf("key %s: %s came, want %s", d.Key, d.Payload, want)
		}
		next[d.Key]++
		Settle(t, s, d)
	}
	writing.Wait()
	Nothing(t, reader, topic, s)
}

func publishAfterContextEnds(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := b.Driver().Publish(ctx, topic, []*bus.Message{{ID: "1", Payload: []byte("x")}})
	if err == nil {
		return // it was quicker than the context
	}
	var pe *bus.PublishError
	if !errors.As(err, &pe) || len(pe.Errs) != 1 || !errors.Is(err, context.Canceled) {
		t.Fatalf("%#v", err)
	}
	if !bus.IsDefinite(err) {
		return // it may have been written
	}
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	Nothing(t, b, topic, s)
}

func largeCall(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	const n = 5000
	msgs := make([]*bus.Message, n)
	for i := range msgs {
		msgs[i] = &bus.Message{Key: fmt.Sprint(i % 7), Payload: fmt.Append(nil, i)}
	}
	Publish(t, b, topic, msgs...)
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	last := map[string]int{}
	for _, d := range Receive(t, s, n) {
		var i int
		if _, err := fmt.Sscan(string(d.Payload), &i); err != nil {
			t.Fatal(err)
		}
		if i < last[d.Key] {
			t.Fatalf("%d after %d", i, last[d.Key])
		}
		last[d.Key] = i
	}
}

func shardsAreKept(t *testing.T, db Database) {
	topic := Topic()
	b := db.Open(t, "shards=3")
	Publish(t, b, topic, Texts(numbers(100)...)...)
	other := db.Open(t, "shards=200")
	Publish(t, other, topic, Texts(numbers(100)...)...)
	o := NewObserver()
	s := Subscribe(t, other, topic, "g", bus.Earliest, o)
	lane := map[string]int32{}
	for _, d := range Receive(t, s, 200) {
		if l, ok := lane[d.Key]; ok && l != d.Lane || d.Lane > 2 {
			t.Fatalf("key %s in lanes %d and %d", d.Key, l, d.Lane)
		}
		lane[d.Key] = d.Lane
	}
	if o.Count() != 3 {
		t.Errorf("%d lanes, want 3", o.Count())
	}
	// The largest number of shards works too.
	wide := Topic()
	Publish(t, other, wide, Texts(numbers(1000)...)...)
	w := NewObserver()
	ws := Subscribe(t, other, wide, "g", bus.Earliest, w)
	ds := Receive(t, ws, 1000)
	if w.Count() != 200 {
		t.Errorf("%d lanes, want 200", w.Count())
	}
	Settle(t, ws, ds...)
	Nothing(t, b, wide, ws)
}

func stayApart(t *testing.T, db Database) {
	b := db.Open(t)
	one, two := Topic(), Topic()
	Publish(t, b, one, Texts("1a", "1b")...)
	Publish(t, b, two, Texts("2a")...)
	s1 := Subscribe(t, b, one, "g", bus.Earliest, NewObserver())
	s1b := Subscribe(t, b, one, "h", bus.Earliest, NewObserver())
	s2 := Subscribe(t, b, two, "g", bus.Earliest, NewObserver())
	for _, test := range []struct {
		s    bus.Source
		want []string
	}{{s1, []string{"1a", "1b"}}, {s2, []string{"2a"}}, {s1b, []string{"1a", "1b"}}} {
		ds := Receive(t, test.s, len(test.want))
		if got := Payloads(ds); !slices.Equal(got, test.want) {
			t.Errorf("%v, want %v", got, test.want)
		}
		Settle(t, test.s, ds...)
	}
	Nothing(t, b, two, s2)
}

// exec changes the database behind the driver's back.
func (db Database) exec(t testing.TB, query string) {
	t.Helper()
	if _, err := db.DB.ExecContext(t.Context(), query); err != nil {
		t.Fatal(err)
	}
}

func (db Database) number(t testing.TB, query string) (n int64) {
	t.Helper()
	if err := db.DB.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (db Database) topicID(t testing.TB, topic string) int64 {
	t.Helper()
	return db.number(t, "SELECT id FROM "+db.Prefix+"topic WHERE name = '"+topic+"'")
}

// logOf is the table of a topic's messages.
func (db Database) logOf(t testing.TB, topic string) string {
	if strings.HasPrefix(db.URL, "sqlite:") {
		return fmt.Sprintf("%slog_%d", db.Prefix, db.topicID(t, topic))
	}
	return db.Prefix + "log"
}

// ofTopic selects a topic's messages in it.
func (db Database) ofTopic(t testing.TB, topic string) string {
	if strings.HasPrefix(db.URL, "sqlite:") {
		return "1 = 1"
	}
	return fmt.Sprintf("topic = %d", db.topicID(t, topic))
}

// clock returns a time by the database after the insertion of all of the topic's messages, and
// before the insertion of any later one.
func (db Database) clock(t testing.TB, topic string) time.Time {
	t.Helper()
	last := db.number(t, "SELECT MAX(created) FROM "+db.logOf(t, topic)+" WHERE "+db.ofTopic(t, topic))
	return time.UnixMicro(last + 1)
}
