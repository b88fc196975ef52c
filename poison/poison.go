// Package poison reads poison queues, the dead letters of a group, on any driver. It lists, groups
// and counts entries without disturbing them, and it replays, edits or drops them.
//
// A replayed message goes to the handler that refused it and to no other group. It keeps its id. It
// goes through the topic's lane of its key, in the order in which the entries were poisoned.
package poison

import (
	"context"
	"fmt"
	"iter"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Queue is the poison queue of one group. It is safe for concurrent use.
type Queue struct {
	bus   *bus.Bus
	group string
	store driver.PoisonStore
}

// Open opens the poison queue of a group. A group that has never poisoned a message has an empty
// queue.
func Open(ctx context.Context, b *bus.Bus, group string) (*Queue, error) {
	if err := driver.CheckName("group", group); err != nil {
		return nil, fmt.Errorf("poison: %w", err)
	}
	store, err := driver.Of(b).Poison(ctx, group)
	if err != nil {
		return nil, fmt.Errorf("poison queue of group %q: %w", group, err)
	}
	return &Queue{b, group, store}, nil
}

// Filter chooses entries that match all of its fields. A zero field matches every entry.
type Filter struct {
	// IDs are ids of entries or of messages.
	IDs []string
	// Topic, Handler, Class and Key match exactly.
	Topic, Handler, Class, Key string
	// Text is a part of the error's text. Upper and lower case are equal.
	Text string
	// Since and Until bound the time of poisoning: from Since on, and before Until.
	Since, Until time.Time
	// After is the id of an entry: only entries behind it in the queue match. With Limit it makes
	// pages. If that entry is gone, nothing matches.
	After string
	// Limit bounds the number of entries that match; 0 is no limit.
	Limit int
}

func (f *Filter) matches(e *driver.PoisonEntry) bool {
	return f.matchesID(e) &&
		(f.Topic == "" || f.Topic == e.Topic) &&
		(f.Handler == "" || f.Handler == e.Handler) &&
		(f.Class == "" || f.Class == e.Failure.Class) &&
		(f.Key == "" || f.Key == e.Message.Key) &&
		(f.Text == "" || strings.Contains(strings.ToLower(e.Failure.Text), strings.ToLower(f.Text))) &&
		(f.Since.IsZero() || !e.Time.Before(f.Since)) &&
		(f.Until.IsZero() || e.Time.Before(f.Until))
}

func (f *Filter) matchesID(e *driver.PoisonEntry) bool {
	for _, id := range f.IDs {
		if id == e.ID || id == e.Message.ID {
			return true
		}
	}
	return len(f.IDs) == 0
}

// List yields the matching entries, oldest first. It ends after the first error.
func (q *Queue) List(ctx context.Context, f Filter) iter.Seq2[driver.PoisonEntry, error] {
	return func(yield func(driver.PoisonEntry, error) bool) {
		n, behind := 0, f.After == ""
		for e, err := range q.store.List(ctx) {
			switch {
			case err != nil:
				yield(driver.PoisonEntry{}, fmt.Errorf("poison queue of group %q: %w", q.group, err))
				return
			case !behind:
				behind = e.ID == f.After
			case f.matches(&e):
				if !yield(e, nil) {
					return
				}
				if n++; n == f.Limit {
					return
				}
			}
		}
	}
}

// Get returns the entry with this id of its own or of its message. The error wraps bus.ErrNotFound
// if there is none.
func (q *Queue) Get(ctx context.Context, id string) (driver.PoisonEntry, error) {
	for e, err := range q.List(ctx, Filter{IDs: []string{id}, Limit: 1}) {
		return e, err
	}
	return driver.PoisonEntry{}, fmt.Errorf("poison queue of group %q: entry %q: %w", q.group, id, bus.ErrNotFound)
}

// Count counts the matching entries.
func (q *Queue) Count(ctx context.Context, f Filter) (int, error) {
	n := 0
	for _, err := range q.List(ctx, f) {
		if err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// Summary sums up the entries of one handler and class.
type Summary struct {
	Handler string `json:"handler"`
	Class   string `json:"class"`
	Count   int    `json:"count"`
	// First and Last are the times at which the oldest and the newest entry was poisoned.
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
	// Text is the newest entry's error text.
	Text string `json:"text"`
}

// Summaries sums up the matching entries by handler and class, in the order of their oldest entry.
func (q *Queue) Summaries(ctx context.Context, f Filter) ([]Summary, error) {
	var sums []Summary
	at := map[[2]string]int{}
	for e, err := range q.List(ctx, f) {
		if err != nil {
			return nil, err
		}
		k := [2]string{e.Handler, e.Failure.Class}
		i, ok := at[k]
		if !ok {
			i = len(sums)
			at[k] = i
			sums = append(sums, Summary{Handler: k[0], Class: k[1], First: e.Time})
		}
		g := &sums[i]
		g.Count++
		g.Last, g.Text = e.Time, e.Failure.Text
	}
	return sums, nil
}

// Edit changes the message of an entry before its replay. change must keep the id and the key,
// which give the message its place. If another caller replays or drops the entry at the same
// moment, the edited entry may appear again: stores do not compare before they replace. The edit of an
// entry whose key waits is lost when the lane goes to another process: replay it at once.
func (q *Queue) Edit(ctx context.Context, id string, change func(*bus.Message)) error {
	e, err := q.Get(ctx, id)
	if err != nil {
		return err
	}
	m := e.Message.Clone()
	change(m)
	if m.ID != e.Message.ID || m.Key != e.Message.Key {
		return fmt.Errorf("poison queue of group %q: entry %q: %w: the message's id and key cannot be changed", q.group, id, bus.ErrInvalid)
	}
	e.Message = m
	if err := q.store.Put(ctx, e); err != nil {
		return fmt.Errorf("poison queue of group %q: %w", q.group, err)
	}
	return nil
}
