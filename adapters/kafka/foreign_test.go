package kafka_test

import (
	"bytes"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// ours are headers of a foreign message under the names that we give to stored records.
func ours() bus.Headers {
	return bus.Headers{
		{Name: "millrace-facts", Value: "x"},
		{Name: "millrace-facts", Value: `{"waits":true,"handler":"forged","attempt":99,"writer":"forged"}`},
		{Name: "millrace-key", Value: "forged"},
		{Name: "millrace-tombstone", Value: ""},
		{Name: "millrace-due", Value: "99999999999999999 free"},
		{Name: "millrace-park", Value: "withdraw 1"},
		{Name: "millrace-id", Value: "forged"},
	}
}

// TestForeignHeaders: a foreign message's headers under our names are its own, at the first try, at
// each later try, and in the poison queue.
func TestForeignHeaders(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("before")...)
		r := &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("foreign")}
		for _, h := range ours() {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: h.Name, Value: []byte(h.Value)})
		}
		produce(t, c, r)
		s, o := parking(t, b, topic, group)
		ds := receive(t, s, 2)
		i := slices.IndexFunc(ds, func(d bus.Delivery) bool { return string(d.Payload) == "foreign" })
		for try := range 2 {
			d := ds[i]
			if d.Key != "k" || string(d.Payload) != "foreign" || !reflect.DeepEqual(d.Headers, ours()) {
				t.Fatalf("try %d: got %+v", try, d.Message)
			}
			d.Handler, d.Attempt = "handler", try+1
			ps := []driver.Parking{{Delivery: d, Due: time.Now().Add(time.Minute).Truncate(time.Microsecond)}}
			if err := s.Park(within(t), ps); err != nil {
				t.Fatal(err)
			}
			closeSource(t, s)
			s, o = parking(t, b, topic, group)
			told := o.told(t, 1)
			if told[0].Key != "k" || told[0].Delayed || !told[0].Due.Equal(ps[0].Due) {
				t.Errorf("try %d: told of %+v", try, told[0])
			}
			if n, err := s.Fetch(within(t), []bus.Token{told[0].Token}, ds[i:]); n != 1 || err != nil {
				t.Fatalf("fetched %d: %v", n, err)
			}
			if ds[i].Handler != "handler" || ds[i].Attempt != try+1 {
				t.Errorf("try %d: handler %q, attempt %d", try, ds[i].Handler, ds[i].Attempt)
			}
		}
		store := poisonStore(t, b, group)
		e := entry("1", ds[i].Message)
		if err := store.Put(within(t), e); err != nil {
			t.Fatal(err)
		}
		got := list(t, store)
		e.Message.Time = got[0].Message.Time // the broker's, in another zone
		if !reflect.DeepEqual(got, []driver.PoisonEntry{e}) {
			t.Errorf("got\n%+v, want\n%+v", got[0], e)
		}

		// It is replayed as itself.
		injector, _ := bus.As[driver.Injector](b)
		p := driver.Parking{Delivery: bus.Delivery{Message: got[0].Message, Attempt: 1}, Due: time.Now().Add(time.Hour)}
		if err := injector.Inject(within(t), topic, group, []driver.Parking{p}); err != nil {
			t.Fatal(err)
		}
		again := fetched(t, s, o.told(t, 2)[1:])
		if !slices.Equal(again, []string{"foreign"}) {
			t.Errorf("replayed are %q", again)
		}
	})
}

// TestForeignTimeAtTheEnd: a time that is beyond the year 9999 in UTC, but not in its own zone, is kept when its message is stored.
func TestForeignTimeAtTheEnd(t *testing.T) {
	c := fakeConfig(fakeCluster(t))
	b := open(t, c)
	publish(t, b, "t", texts("before")...)
	produce(t, c, &kgo.Record{Topic: "t", Value: []byte("foreign"), Headers: []kgo.RecordHeader{{Key: "ce_time", Value: []byte("9999-12-31T23:59:59-01:00")}}})
	s, _ := parking(t, b, "t", "g")
	ds := receive(t, s, 2)
	i := slices.IndexFunc(ds, func(d bus.Delivery) bool { return string(d.Payload) == "foreign" })
	ps := parkAll(ds[i : i+1])
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	got := make([]bus.Delivery, 1)
	if n, err := s.Fetch(within(t), []bus.Token{ps[0].Token}, got); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if !got[0].Time.Equal(ds[i].Time) || len(got[0].Headers) > 0 {
		t.Errorf("got %v with %v, want %v", got[0].Time, got[0].Headers, ds[i].Time)
	}
}

// TestUnreadableEntries: records in the poison queue that are no entries are listed as such, with their bytes, and can be removed. The
// others are listed as ever.
func TestUnreadableEntries(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		group := name("g")
		s := poisonStore(t, b, group)
		e := entry("good", &bus.Message{ID: "1", Source: "/s", Time: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Payload: []byte("p")})
		if err := s.Put(within(t), e); err != nil {
			t.Fatal(err)
		}
		topic := "millrace.poison." + group
		produce(t, c,
			&kgo.Record{Topic: topic, Key: []byte("bare"), Value: []byte("what\xffever")},
			&kgo.Record{Topic: topic, Key: []byte("damaged"), Value: []byte("x"), Headers: []kgo.RecordHeader{{Key: "millrace-facts", Value: []byte("{")}, {Key: "millrace-key", Value: []byte("k")}}},
			&kgo.Record{Topic: topic, Key: []byte("twice"), Value: []byte("1")},
			&kgo.Record{Topic: topic, Key: []byte("twice"), Value: []byte("2")},
		)
		all := list(t, s)
		if len(all) != 4 || !reflect.DeepEqual(all[0], e) {
			t.Fatalf("got %+v", all)
		}
		for i, want := range []struct{ id, payload string }{{"bare", "what\xffever"}, {"damaged", "x"}, {"twice", "2"}} {
			got := all[1+i]
			if got.ID != want.id || string(got.Message.Payload) != want.payload || got.Failure.Class != driver.Unreadable || got.Failure.Text == "" || got.Group != group {
				t.Errorf("got %+v, want %v", got, want)
			}
		}
		if err := s.Remove(within(t), "bare", "damaged", "twice"); err != nil {
			t.Fatal(err)
		}
		if all := list(t, s); len(all) != 1 {
			t.Errorf("left are %+v", all)
		}
	})
}

// TestUnreadableParked: a parked record that cannot be read goes to the poison queue, and nothing that is parked waits for it.
func TestUnreadableParked(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("a", "b")...)
		s, _ := parking(t, b, topic, group)
		ps := parkAll(receive(t, s, 2))
		if err := s.Park(within(t), ps); err != nil {
			t.Fatal(err)
		}
		closeSource(t, s)
		produce(t, c, &kgo.Record{Topic: parkingTopic(topic, group), Partition: ps[0].Lane, Key: []byte("42"), Value: []byte("garbage"), Headers: []kgo.RecordHeader{{Key: "millrace-facts", Value: []byte("x")}}})
		s, o := parking(t, b, topic, group)
		told := o.told(t, 3)
		if got := fetched(t, s, told); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("fetched %v", got)
		}
		all := list(t, poisonStore(t, b, group))
		if len(all) != 1 || all[0].Failure.Class != driver.Unreadable || !bytes.Equal(all[0].Message.Payload, []byte("garbage")) || all[0].Topic != topic || all[0].Lane != ps[0].Lane || all[0].Position != 42 {
			t.Errorf("poisoned are %+v", all)
		}
		closeSource(t, s)
		s, o = parking(t, b, topic, group)
		if got := fetched(t, s, o.told(t, 2)); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("then fetched %v", got)
		}
	})
}

// TestUnknownCommandStays: a command of a later version is not deleted, and is reported.
func TestUnknownCommandStays(t *testing.T) {
	c := fakeConfig(fakeCluster(t))
	b := open(t, c)
	publish(t, b, "t", texts("a")...)
	s, o := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 1))
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	later := &kgo.Record{Topic: parkingTopic("t", "g"), Partition: ps[0].Lane, Key: []byte("later-1"), Value: []byte("x"), Headers: []kgo.RecordHeader{{Key: "millrace-park", Value: []byte("postpone 42")}}}
	produce(t, c, later)
	injector, _ := bus.As[driver.Injector](b)
	withdraw := driver.Parking{Withdraw: true, Delivery: bus.Delivery{Message: ps[0].Message, Token: ps[0].Token}}
	if err := injector.Inject(within(t), "t", "g", []driver.Parking{withdraw}); err != nil {
		t.Fatal(err)
	}
	if err := o.toldOf(t, "other commands for partition"); !strings.Contains(err.Error(), "no command that this version knows") {
		t.Errorf("reported %v", err)
	}
	// The command behind it is carried out and deleted; it is not.
	awaitRecord(t, c, later.Topic, later.Partition, func(r *kgo.Record) bool {
		if string(r.Key) == "later-1" && r.Value == nil {
			t.Error("it was deleted")
		}
		return strings.HasPrefix(string(r.Key), "inject-") && r.Value == nil
	})
}

// TestInjectMeansAMessage: a command about a place where another message is does nothing.
func TestInjectMeansAMessage(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("a", "b")...)
		s, o := parking(t, b, topic, group)
		ps := parkAll(receive(t, s, 2))
		if err := s.Park(within(t), ps); err != nil {
			t.Fatal(err)
		}
		injector, _ := bus.As[driver.Injector](b)
		at := func(p driver.Parking, m *bus.Message, withdraw bool) driver.Parking {
			return driver.Parking{Withdraw: withdraw, Due: time.Now().Add(time.Hour), Delivery: bus.Delivery{Message: m, Token: p.Token, Attempt: 7}}
		}
		err := injector.Inject(within(t), topic, group, []driver.Parking{
			at(ps[0], ps[1].Message, true), at(ps[0], ps[1].Message, false), // of the wrong message
			at(ps[0], ps[0].Message, false), at(ps[1], ps[1].Message, true),
		})
		if err != nil {
			t.Fatal(err)
		}
		told := o.told(t, 2)
		if told[0].Token != ps[0].Token || told[0].Withdrawn || told[1].Token != ps[1].Token || !told[1].Withdrawn {
			t.Errorf("told of %+v", told)
		}
		closeSource(t, s)
		s, o = parking(t, b, topic, group)
		told = o.told(t, 1)
		ds := make([]bus.Delivery, 1)
		if n, err := s.Fetch(within(t), []bus.Token{told[0].Token}, ds); n != 1 || err != nil || ds[0].ID != ps[0].ID || ds[0].Attempt != 7 {
			t.Errorf("%d, %v: fetched %+v", n, err, ds[0])
		}
	})
}

// TestCommandsOfBefore: records of an earlier version are understood: records without a writer,
// commands without an id.
func TestCommandsOfBefore(t *testing.T) {
	c := fakeConfig(fakeCluster(t))
	b := open(t, c)
	publish(t, b, "t", texts("x")...)
	s, _ := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 1))
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	stored := func(key, id string, more ...kgo.RecordHeader) *kgo.Record {
		return &kgo.Record{
			Topic: parkingTopic("t", "g"), Partition: ps[0].Lane, Key: []byte(key), Value: []byte(id),
			Headers: append([]kgo.RecordHeader{
				{Key: "ce_specversion", Value: []byte("1.0")},
				{Key: "ce_id", Value: []byte(id)},
				{Key: "ce_source", Value: []byte("/s")},
				{Key: "ce_time", Value: []byte("2026-01-02T03:04:05Z")},
				{Key: "millrace-facts", Value: []byte(`{"attempt":3,"firstseen":"2026-01-02T03:04:05Z","failure":{"class":"","text":"failed","attempts":2,"first":"2026-01-02T03:04:05Z","last":"2026-01-02T03:04:06Z"}}`)},
				{Key: "millrace-key", Value: []byte("k")},
				{Key: "millrace-due", Value: []byte("4102444800000000")},
			}, more...),
		}
	}
	closeSource(t, s)
	position := string(awaitRecord(t, c, parkingTopic("t", "g"), ps[0].Lane, func(*kgo.Record) bool { return true }).Key)
	produce(t, c,
		stored("7", "old"),
		stored("inject-1", "new", kgo.RecordHeader{Key: "millrace-park", Value: []byte("new")}),
		stored("inject-2", "replaced", kgo.RecordHeader{Key: "millrace-park", Value: []byte("replace " + position)}),
		&kgo.Record{Topic: parkingTopic("t", "g"), Partition: ps[0].Lane, Key: []byte("inject-3"), Value: []byte{}, Headers: []kgo.RecordHeader{{Key: "millrace-park", Value: []byte("withdraw " + position)}}},
	)
	s, o := parking(t, b, "t", "g")
	told := o.told(t, 4) // two that are there, a new one, one withdrawn; the replaced one is not the message that is there
	if !told[3].Withdrawn || told[3].Token.Position != ps[0].Token.Position {
		t.Errorf("told of %+v", told)
	}
	due := time.Unix(4102444800, 0)
	if told[0].Token.Position != 7 || told[0].Key != "k" || !told[0].Due.Equal(due) || told[2].Key != "k" || !told[2].Due.Equal(due) {
		t.Errorf("told of %+v", told)
	}
	if got := fetched(t, s, told); !slices.Equal(got, []string{"old", "new"}) {
		t.Errorf("fetched %v", got)
	}
}

// TestPoisonListedWhileCompacted: an entry is listed even if its first record goes while the store
// is read, because there is a newer record.
func TestPoisonListedWhileCompacted(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	s := poisonStore(t, b, "g")
	for _, text := range []string{"a1", "b1", "a2", "c1"} {
		if err := s.Put(within(t), entry(text[:1], &bus.Message{ID: text, Source: "/s", Payload: []byte(text)})); err != nil {
			t.Fatal(err)
		}
	}
	reads := 0
	c.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if reads++; reads == 2 {
			c.SleepControl(func() {
				// b is replaced, too, after the first reading.
				if err := s.Put(within(t), entry("b", &bus.Message{ID: "b2", Source: "/s", Payload: []byte("b2")}), entry("d", &bus.Message{ID: "d1", Source: "/s", Payload: []byte("d1")})); err != nil {
					t.Error(err)
				}
				if err := s.Put(within(t), entry("e", &bus.Message{ID: "e1", Source: "/s", Payload: []byte("e1")})); err != nil {
					t.Error(err)
				}
				c.Compact()
			})
		}
		return nil, nil, false
	})
	var got []string
	for e, err := range s.List(within(t)) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(e.Message.Payload))
	}
	if slices.Sort(got); !slices.Equal(got, []string{"a2", "b2", "c1"}) {
		t.Errorf("listed are %v", got)
	}
}
