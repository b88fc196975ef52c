package conformance

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

var poisonChecks = []check{
	{"poison/store", poisonStore},
	{"poison/concurrent", poisonConcurrent},
	{"poison/unreadable", poisonUnreadable},
	{"poison/away", poisonAway},
	{"poison/lane-lost", poisonLaneLost},
	{"poison/replay", poisonReplay},
	{"poison/replay-interrupted", poisonReplayInterrupted},
	{"poison/replay-at-most-once", poisonReplayAtMostOnce},
	{"poison/key-waits", poisonKeyWaits},
	{"poison/key-waits-elsewhere", poisonKeyWaitsElsewhere},
}

// poisonStore: entries come back unchanged, oldest first, replaced by id and removed by id. Listing
// does not disturb them.
func poisonStore(e *env) {
	b := e.bus()
	group := e.name("g")
	if n := len(e.poisoned(b, group)); n != 0 {
		e.fatalf("a new group has %d entries", n)
	}
	s, err := driver.Of(b).Poison(e.ctx, group)
	e.must(err, "open the poison store")
	at := time.Now().UTC().Truncate(time.Millisecond)
	put := func(id, text string, payload []byte) driver.PoisonEntry {
		p := driver.PoisonEntry{
			ID:      id,
			Message: &bus.Message{ID: "m-" + id, Key: "k\xff", Source: "/s", Type: "t", Time: at, Payload: payload, Headers: bus.Headers{{Name: "h", Value: "1"}, {Name: "h", Value: "2"}}},
			Topic:   "t", Group: group, Handler: "h", Lane: 3, Position: 1 << 40, Waits: id == "1", Host: "here", Time: at,
			Failure: bus.Failure{Class: "c", Text: text, Stack: "s", Attempts: 4, First: at, Last: at},
		}
		e.must(s.Put(e.ctx, p), "put")
		return p
	}
	want := []driver.PoisonEntry{put("1", "text Ω\n", nil), put("2", "two", []byte{}), put("3", "three", []byte{0, 0xff})}
	want = append(want[:1:1], want[2], put("2", "again", []byte("new"))) // a replaced entry may keep its place
	entries := func() []driver.PoisonEntry {
		got := e.poisoned(b, group)
		slices.SortStableFunc(got, func(x, y driver.PoisonEntry) int { return cmp.Compare(last(x), last(y)) })
		return got
	}
	for range 2 { // looking changes nothing
		got := entries()
		if len(got) != len(want) {
			e.fatalf("%d entries, want %d", len(got), len(want))
		}
		for i := range want {
			w, g := want[i], got[i]
			same(e, w.Message, g.Message)
			w.Message, g.Message = nil, nil
			g.Time, g.Failure.First, g.Failure.Last = g.Time.UTC(), g.Failure.First.UTC(), g.Failure.Last.UTC()
			if w != g {
				e.errorf("entry %d is %+v, want %+v", i, g, w)
			}
		}
	}
	if n := len(e.poisoned(b, e.name("other"))); n != 0 {
		e.errorf("another group sees %d entries", n)
	}
	e.must(s.Remove(e.ctx, "2", "none"), "remove")
	other := e.bus()
	var ids []string
	for _, p := range e.poisoned(other, group) {
		ids = append(ids, p.ID)
	}
	if !slices.Equal(ids, []string{"1", "3"}) {
		e.errorf("after a removal the entries are %q", ids)
	}
}

// last sorts the entry that was replaced behind the others.
func last(p driver.PoisonEntry) int {
	if p.ID == "2" {
		return 1
	}
	return 0
}

// poisonConcurrent: several put and list at once, and nothing is lost.
func poisonConcurrent(e *env) {
	b := e.bus()
	group := e.name("g")
	s, err := driver.Of(b).Poison(e.ctx, group)
	e.must(err, "open the poison store")
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 10 {
				m := &bus.Message{ID: fmt.Sprint(j), Source: "/s", Time: time.Now()}
				if err := s.Put(e.ctx, driver.PoisonEntry{ID: fmt.Sprint(i, "/", j), Message: m, Group: group}); err != nil {
					e.errorf("put: %v", err)
				}
			}
		})
		wg.Go(func() {
			for _, err := range s.List(e.ctx) {
				if err != nil {
					e.errorf("list: %v", err)
				}
			}
		})
	}
	wg.Wait()
	seen := map[string]bool{}
	for _, p := range e.poisoned(b, group) {
		if seen[p.ID] {
			e.errorf("entry %s is listed twice", p.ID)
		}
		seen[p.ID] = true
	}
	if len(seen) != 80 {
		e.errorf("%d entries, want 80", len(seen))
	}
}
