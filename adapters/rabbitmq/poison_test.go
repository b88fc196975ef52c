package rabbitmq

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func newPoison(t testing.TB) (driver.PoisonStore, *busDriver) {
	t.Helper()
	d := openDriver(t, brokerConfig(t))
	group := newName(t, "group")
	p, err := d.Poison(testContext(t), group)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_, err := call(context.Background(), d.pub.link.Current(), func(_ context.Context, tp *topology) (struct{}, error) {
			return struct{}{}, tp.deleteQueue(poisonName(group))
		})
		if err != nil {
			t.Error(err)
		}
	})
	return p, d
}

func listIDs(t testing.TB, p driver.PoisonStore) (ids []string) {
	t.Helper()
	for e, err := range p.List(testContext(t)) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

func entry(id string) driver.PoisonEntry {
	return driver.PoisonEntry{ID: id, Message: message("m-"+id, "k"), Topic: "t", Group: "g"}
}

// TestPoisonAtOnce: several processes, and several callers in each, put the first entries of a
// group at the same moment.
func TestPoisonAtOnce(t *testing.T) {
	const rounds, processes, each = 20, 3, 3
	ctx := testContext(t)
	var ds []*busDriver
	for range processes {
		ds = append(ds, openDriver(t, brokerConfig(t)))
	}
	for range rounds {
		group := newName(t, "group")
		var all sync.WaitGroup
		for i := range processes * each {
			all.Go(func() {
				p, err := ds[i%processes].Poison(ctx, group)
				if err == nil {
					err = p.Put(ctx, entry(fmt.Sprint(i)))
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		p, err := ds[0].Poison(ctx, group)
		if err != nil {
			t.Fatal(err)
		}
		if ids := listIDs(t, p); len(ids) != processes*each {
			t.Errorf("entries %v", ids)
		}
		if _, err := call(ctx, ds[0].pub.link.Current(), func(_ context.Context, tp *topology) (struct{}, error) {
			return struct{}{}, tp.deleteQueue(poisonName(group))
		}); err != nil {
			t.Error(err)
		}
	}
}

func TestPoison(t *testing.T) {
	ctx := testContext(t)
	p, _ := newPoison(t)
	if ids := listIDs(t, p); len(ids) != 0 {
		t.Fatal(ids)
	}
	odd := driver.PoisonEntry{
		ID: "odd", Topic: "topic", Group: "group", Handler: "handler", Lane: 7, Position: 1 << 40, Host: "host",
		Time: time.Now().Round(0),
		Failure: bus.Failure{
			Class: "panic", Text: strings.Repeat("text ", 30_000), Stack: strings.Repeat("frame\n", 20_000), Attempts: 3,
			First: time.Now().Add(-time.Hour).Round(0), Last: time.Now().Round(0),
		},
		Message: &bus.Message{
			ID: "id", Key: "\xff\x00k", Type: "type", Source: "/s", Subject: "sub", Time: time.Now().UTC().Round(0), ContentType: "a/b",
			Headers: bus.Headers{{Name: "b", Value: "\xfe"}, {Name: "a", Value: ""}, {Name: "b", Value: "2"}, {Name: "x-death", Value: "[1]"}},
			Payload: []byte{0, 1, 255},
		},
	}
	tombstone, empty := entry("tombstone"), entry("empty")
	tombstone.Message.Payload, empty.Message.Payload = nil, []byte{}
	large := entry("large")
	large.Message.Payload = make([]byte, 10<<20)
	if err := p.Put(ctx, odd, tombstone, empty, large, entry("1"), entry("2")); err != nil {
		t.Fatal(err)
	}
	got := map[string]driver.PoisonEntry{}
	for e, err := range p.List(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		got[e.ID] = e
	}
	if len(got) != 6 {
		t.Fatalf("%d entries", len(got))
	}
	e := got["odd"]
	if !e.Time.Equal(odd.Time) || !e.Failure.First.Equal(odd.Failure.First) || !e.Failure.Last.Equal(odd.Failure.Last) || !e.Message.Time.Equal(odd.Message.Time) {
		t.Errorf("times differ: %v %v", e, e.Message)
	}
	e.Time, e.Failure.First, e.Failure.Last, e.Message.Time = odd.Time, odd.Failure.First, odd.Failure.Last, odd.Message.Time
	if !reflect.DeepEqual(e, odd) {
		t.Errorf("got %+v\nwant %+v\ngot %+v\nwant %+v", e.Message, odd.Message, e.Lane, odd.Lane)
	}
	if got["tombstone"].Message.Payload != nil || got["empty"].Message.Payload == nil {
		t.Error("tombstone and empty payload are mixed up")
	}
	if len(got["large"].Message.Payload) != 10<<20 {
		t.Error("the large payload is cut")
	}
	// Replace, and remove some entries that are there, and some that are not.
	replaced := entry("1")
	replaced.Failure.Text = "again"
	if err := p.Put(ctx, replaced); err != nil {
		t.Fatal(err)
	}
	if err := p.Remove(ctx, "odd", "large", "nobody"); err != nil {
		t.Fatal(err)
	}
	if ids := listIDs(t, p); !slices.Equal(ids, []string{"tombstone", "empty", "2", "1"}) {
		t.Error(ids)
	}
	// Removing while listing, and stopping a listing.
	for e, err := range p.List(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Remove(ctx, e.ID); err != nil {
			t.Fatal(err)
		}
		if e.ID == "2" {
			break
		}
	}
	if ids := listIDs(t, p); !slices.Equal(ids, []string{"1"}) {
		t.Error(ids)
	}
}

func TestPoisonConcurrent(t *testing.T) {
	ctx := testContext(t)
	p, _ := newPoison(t)
	var ids []string
	for w := range 4 {
		for i := range 50 {
			ids = append(ids, fmt.Sprintf("%d-%02d", w, i))
		}
	}
	var workers sync.WaitGroup
	for w := range 4 {
		workers.Go(func() {
			for i := range 50 {
				if err := p.Put(ctx, entry(ids[w*50+i])); err != nil {
					t.Error(err)
				}
			}
		})
		workers.Go(func() {
			before := 0
			for range 5 {
				now := len(listIDs(t, p))
				if now < before {
					t.Errorf("%d entries after %d", now, before)
				}
				before = now
			}
		})
	}
	workers.Wait()
	got := listIDs(t, p)
	slices.Sort(got)
	if !slices.Equal(got, ids) {
		t.Errorf("%d entries, want %d", len(got), len(ids))
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	if err := p.Remove(ctx, append(ids, make([]string, 2000)...)...); err != nil {
		t.Fatal(err)
	}
	if got := listIDs(t, p); len(got) != 0 {
		t.Errorf("%d left", len(got))
	}
}

func TestPoisonStreamIsMadeAgain(t *testing.T) {
	ctx := testContext(t)
	p, d := newPoison(t)
	_, err := call(ctx, d.pub.link.Current(), func(_ context.Context, tp *topology) (struct{}, error) {
		return struct{}{}, tp.deleteQueue(p.(*poisonStore).stream)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Put(ctx, entry("1")); err != nil {
		t.Fatal(err)
	}
	if ids := listIDs(t, p); len(ids) != 1 {
		t.Error(ids)
	}
}
