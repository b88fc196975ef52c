package sqltest

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Retention deletes only messages that every group has finished, and only those that are old
// enough. Nothing else may use the database meanwhile: its messages would go too.
func Retention(t *testing.T, db Database) {
	old := db.Open(t, "retention=1h")
	keep := Topic()
	Publish(t, old, keep, Texts(numbers(10)...)...)
	s := Subscribe(t, old, keep, "g", bus.Earliest, NewObserver())
	Settle(t, s, Receive(t, s, 10)...)
	Close(t, s)
	if err := old.Driver().(interface{ Sweep(context.Context) error }).Sweep(bounded(t)); err != nil {
		t.Fatal(err)
	}
	if n := db.number(t, "SELECT COUNT(*) FROM "+db.logOf(t, keep)+" WHERE "+db.ofTopic(t, keep)); n != 10 {
		t.Errorf("%d are left of 10 that are not an hour old", n)
	}

	topic := Topic()
	b := db.Open(t, "retention=1ms", "shards=4")
	sweeper, ok := b.Driver().(interface{ Sweep(context.Context) error })
	if !ok {
		t.Fatal("no sweeper")
	}
	Publish(t, b, topic, Texts(numbers(400)...)...)
	quick := Subscribe(t, b, topic, "quick", bus.Earliest, NewObserver())
	slow := Subscribe(t, b, topic, "slow", bus.Earliest, NewObserver())
	count := func() int64 {
		return db.number(t, "SELECT COUNT(*) FROM "+db.logOf(t, topic)+" WHERE "+db.ofTopic(t, topic))
	}
	sweep := func() {
		if err := sweeper.Sweep(bounded(t)); err != nil {
			t.Fatal(err)
		}
	}
	Settle(t, quick, Receive(t, quick, 400)...)
	Close(t, quick)
	if sweep(); count() != 400 {
		t.Errorf("%d are left, and one group has not begun", count())
	}
	ds := Receive(t, slow, 400)
	var settled []bus.Delivery
	for i, d := range ds {
		if i != 100 && i != 399 {
			settled = append(settled, d)
		}
	}
	Settle(t, slow, settled...)
	Close(t, slow)
	sweep()
	if n := count(); n < 2 || n == 400 {
		t.Errorf("%d are left", n)
	}
	slow = Subscribe(t, b, topic, "slow", bus.Earliest, NewObserver())
	want := Payloads([]bus.Delivery{ds[100], ds[399]})
	again := Receive(t, slow, 2)
	if got := Payloads(again); !reflect.DeepEqual(got, want) {
		t.Errorf("%v came again, want %v", got, want)
	}
	Settle(t, slow, again...)
	Nothing(t, b, topic, slow)
	Close(t, slow)
	quick = Subscribe(t, b, topic, "quick", bus.Earliest, NewObserver())
	Settle(t, quick, Receive(t, quick, 1)...)
	Close(t, quick)
	if sweep(); count() > 1 {
		t.Errorf("%d are left", count())
	}
	// Positions go on from where they were, though everything was deleted.
	quick = Subscribe(t, b, topic, "quick", bus.Earliest, NewObserver())
	Nothing(t, b, topic, quick)
	late := Subscribe(t, b, topic, "late", bus.Earliest, NewObserver())
	Publish(t, b, topic, Texts("last")...)
	for d := Receive(t, late, 1)[0]; string(d.Payload) != "last"; d = Receive(t, late, 1)[0] {
	}
}

func lag(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	l, ok := bus.As[driver.Lagger](b)
	if !ok {
		t.Fatal("no Lagger")
	}
	expect := func(want int64) {
		t.Helper()
		if got, err := l.Lag(bounded(t), topic, "g"); err != nil || got.Messages != want {
			t.Errorf("lag %+v, %v; want %d", got, err, want)
		}
	}
	if _, err := l.Lag(bounded(t), topic, "g"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("lag on an unknown topic: %v", err)
	}
	Publish(t, b, topic, Texts(numbers(100)...)...)
	if _, err := l.Lag(bounded(t), topic, "g"); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("lag of an unknown group: %v", err)
	}
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	expect(100)
	ds := Receive(t, s, 100)
	expect(100)
	Settle(t, s, ds[:20]...)
	Settle(t, s, ds[40:70]...)
	expect(50)
	Settle(t, s, ds...)
	expect(0)
	if p, ok := bus.As[driver.Pinger](b); !ok || p.Ping(bounded(t)) != nil {
		t.Error("ping")
	}
}

func poison(t *testing.T, db Database) {
	b := db.Open(t)
	group, other := Topic(), Topic()
	store, err := driver.Of(b).Poison(bounded(t), group)
	if err != nil {
		t.Fatal(err)
	}
	at := time.Now().Round(0)
	entry := func(id, text string) driver.PoisonEntry {
		return driver.PoisonEntry{
			ID: id, Topic: "t", Group: group, Handler: "h", Lane: 3, Position: 1 << 40, Host: "host", Time: at,
			Failure: bus.Failure{Class: "permanent", Text: text, Stack: "a\n\tb", Attempts: 3, First: at.Add(-time.Hour), Last: at},
			Message: &bus.Message{
				ID: "m", Key: "\x00\xff", Type: "t", Source: "/s", Subject: "u", Time: at, ContentType: "c",
				Headers: bus.Headers{{Name: "a", Value: "\xff"}, {Name: "a", Value: ""}}, Payload: []byte("\x00\x01"),
			},
		}
	}
	tombstone := entry("tombstone", "x")
	tombstone.Message = &bus.Message{ID: "m2", Time: at}
	empty := entry("empty", "x")
	empty.Message = &bus.Message{ID: "m3", Time: at, Payload: []byte{}}
	want := []driver.PoisonEntry{entry("one", "first"), tombstone, empty}
	for i := range 250 {
		want = append(want, entry(fmt.Sprint("n", i), "many"))
	}
	if err := store.Put(bounded(t), want...); err != nil {
		t.Fatal(err)
	}
	want[0] = entry("one", "replaced")
	if err := store.Put(bounded(t), want[0]); err != nil {
		t.Fatal(err)
	}
	if err := store.Put(bounded(t), want[0]); err != nil { // the same again
		t.Fatal(err)
	}
	elsewhere, err := driver.Of(b).Poison(bounded(t), other)
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Put(bounded(t), entry("one", "of another group")); err != nil {
		t.Fatal(err)
	}
	check := func(want []driver.PoisonEntry) {
		t.Helper()
		i := 0
		for got, err := range store.List(bounded(t)) {
			if err != nil {
				t.Fatal(err)
			}
			if i < len(want) && !same(got, want[i]) {
				t.Fatalf("entry %d:\n got %+v\nwant %+v", i, got, want[i])
			}
			if i == 5 { // nothing is locked while the caller looks
				if err := store.Remove(bounded(t), "unknown"); err != nil {
					t.Fatal(err)
				}
			}
			i++
		}
		if i != len(want) {
			t.Fatalf("%d entries, want %d", i, len(want))
		}
	}
	check(want)
	if err := store.Remove(bounded(t), "one", "unknown", "n0"); err != nil {
		t.Fatal(err)
	}
	check(append(want[1:3:3], want[4:]...))
	for _, err := range store.List(bounded(t)) {
		if err != nil {
			t.Fatal(err)
		}
		break
	}
}

func same(a, b driver.PoisonEntry) bool {
	for _, times := range [][2]*time.Time{
		{&a.Time, &b.Time},
		{&a.Failure.First, &b.Failure.First},
		{&a.Failure.Last, &b.Failure.Last},
		{&a.Message.Time, &b.Message.Time},
	} {
		if !times[0].Equal(*times[1]) {
			return false
		}
		*times[0] = *times[1]
	}
	return reflect.DeepEqual(a, b)
}

func closing(t *testing.T, db Database) {
	b, err := db.open()
	if err != nil {
		t.Fatal(err)
	}
	topic := Topic()
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	blocked := Subscribe(t, b, topic, "h", bus.Earliest, NewObserver())
	store, err := driver.Of(b).Poison(bounded(t), "g")
	if err != nil {
		t.Fatal(err)
	}
	var working sync.WaitGroup
	working.Go(func() {
		buf := make([]bus.Delivery, 1)
		for {
			if _, err := blocked.Receive(context.Background(), buf, 1); err != nil {
				if !isClosed(err) {
					t.Errorf("receive: %v", err)
				}
				return
			}
		}
	})
	for range 4 {
		working.Go(func() {
			for {
				err := b.Driver().Publish(context.Background(), topic, Texts("x"))
				if err == nil {
					continue
				}
				if !isClosed(err) || !bus.IsDefinite(err) {
					t.Errorf("publish: %v", err)
				}
				return
			}
		})
	}
	Receive(t, s, 20)
	Close(t, s)
	Close(t, s)
	if _, err := s.Receive(bounded(t), make([]bus.Delivery, 1), 1); !isClosed(err) {
		t.Errorf("receive after close: %v", err)
	}
	for range 3 {
		working.Go(func() {
			if err := b.Driver().Close(context.Background()); err != nil {
				t.Errorf("close: %v", err)
			}
		})
	}
	working.Wait()
	_, err = b.Driver().Subscribe(bounded(t), bus.Subscription{Topic: topic, Group: "g", InFlight: 1, Bytes: 1}, NewObserver())
	if !isClosed(err) {
		t.Errorf("subscribe after close: %v", err)
	}
	if _, err := driver.Of(b).Poison(bounded(t), "g"); !isClosed(err) {
		t.Errorf("poison after close: %v", err)
	}
	if err := store.Put(bounded(t), driver.PoisonEntry{ID: "x"}); !isClosed(err) {
		t.Errorf("put after close: %v", err)
	}
}

// Versions checks how Open treats tables of other versions. Nothing else may use the database
// meanwhile. script is the text that Migrations returns for it; the database has no tables yet.
func Versions(t *testing.T, db Database, script string) {
	_, err := db.open("migrate=false")
	if !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), "0: there are none") || bus.IsRetryable(err) {
		t.Errorf("no tables: %v", err)
	}
	for _, statement := range strings.Split(script, ";\n") {
		if strings.TrimSpace(statement) != "" {
			db.exec(t, statement)
		}
	}
	b, err := db.open("migrate=false")
	if err != nil {
		t.Fatalf("tables made by the script: %v", err)
	}
	Publish(t, b, "t", Texts("x")...)
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	db.exec(t, "UPDATE "+db.Prefix+"meta SET version = 99")
	_, err = db.open()
	if !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), "have version 99") || bus.IsRetryable(err) {
		t.Errorf("newer tables: %v", err)
	}
}

// Dependencies checks that a package pulls in one client library. All modules that it imports,
// Millrace's own aside, belong to those that the library itself needs.
func Dependencies(t *testing.T, pkg string, libraries ...string) {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", pkg).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, module := range strings.Fields(string(out)) {
		if !strings.HasPrefix(module, "github.com/millrace-go/millrace") && !slices.Contains(libraries, module) {
			t.Errorf("%s needs %s", pkg, module)
		}
	}
}

// URLs opens malformed URLs: each error names the mistake, and no password.
func URLs(t *testing.T, mistakes map[string]string) {
	for text, want := range mistakes {
		_, err := bus.Open(bounded(t), text)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "hunter2") {
			t.Errorf("%s: the password is printed: %v", text, err)
		}
	}
}

// Existing publishes to a bus over a pool that belongs to the test, and consumes from it.
func Existing(t *testing.T, b *bus.Bus) {
	topic := Topic()
	Publish(t, b, topic, Texts(numbers(300)...)...)
	one := Subscribe(t, b, topic, "one", bus.Earliest, NewObserver())
	two := Subscribe(t, b, topic, "two", bus.Earliest, NewObserver())
	ds := Receive(t, one, 300)
	Settle(t, one, ds[:150]...)
	Settle(t, two, Receive(t, two, 300)...)
	Close(t, one)
	one = Subscribe(t, b, topic, "one", bus.Earliest, NewObserver())
	Settle(t, one, Receive(t, one, 150)...)
	store, err := driver.Of(b).Poison(bounded(t), "one")
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Put(bounded(t), driver.PoisonEntry{ID: "x", Message: ds[0].Message}); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, err := range store.List(bounded(t)) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 1 {
		t.Errorf("%d poison entries", n)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// Denied takes away a table that publishing needs while a bus is open, as an administrator takes a right away. That is said at once, it
// is no message's fault, and it passes. Nothing else may use the tables meanwhile.
func Denied(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	Publish(t, b, topic, Texts("before")...)
	schema, name := "", db.logOf(t, topic)
	if i := strings.IndexByte(name, '.'); i > 0 {
		schema, name = name[:i+1], name[i+1:]
	}
	db.exec(t, "ALTER TABLE "+schema+name+" RENAME TO "+name+"_away")
	err := b.PublishMessages(bounded(t), topic, Texts("refused")...)
	if err == nil || !bus.IsDefinite(err) || !bus.IsRetryable(err) {
		t.Errorf("without the table: %v", err)
	}
	db.exec(t, "ALTER TABLE "+schema+name+"_away RENAME TO "+name)
	Publish(t, b, topic, Texts("after")...)
}
