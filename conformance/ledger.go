package conformance

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// ledger notes every message published to a topic and every call of a group's handler. Messages are
// numbered by key.
type ledger struct {
	e *env

	mu        *sync.Mutex         // shared with ledgers of the same messages
	published map[string]int      // id → number within its key
	byKey     map[string][]string // key → ids in publish order
	keyOf     map[string]string   // id → key
	calls     map[string]int      // id → calls that succeeded
	order     map[string][]int    // key → numbers in the order of handling
	active    map[string]string   // key → id being handled
	now, most int                 // calls at once
	strange   []string            // messages that should not have come at all
}

func (e *env) ledger() *ledger {
	return &ledger{
		e: e, mu: new(sync.Mutex), published: map[string]int{}, byKey: map[string][]string{}, keyOf: map[string]string{}, calls: map[string]int{}, order: map[string][]int{},
		active: map[string]string{},
	}
}

// make makes n messages, spread over so many keys ("" if there are none), and notes them as
// published.
func (l *ledger) make(n, keys int) []*bus.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	msgs := make([]*bus.Message, n)
	for i := range msgs {
		key := ""
		if keys > 0 {
			key = "key-" + strconv.Itoa(rand.IntN(keys))
		}
		msgs[i] = l.add(key)
	}
	return msgs
}

// each makes a message for each of the keys from-to, and notes them as published.
func (l *ledger) each(from, to int) []*bus.Message {
	l.mu.Lock()
	defer l.mu.Unlock()
	msgs := make([]*bus.Message, 0, to-from)
	for i := from; i < to; i++ {
		msgs = append(msgs, l.add("key-"+strconv.Itoa(i)))
	}
	return msgs
}

// add makes a message and notes it as published. Called with the lock held.
func (l *ledger) add(key string) *bus.Message {
	m := &bus.Message{ID: bus.NewID(), Key: key, Payload: []byte(strconv.Itoa(len(l.byKey[key])))}
	l.published[m.ID] = len(l.byKey[key])
	l.byKey[key] = append(l.byKey[key], m.ID)
	l.keyOf[m.ID] = key
	return m
}

// shared is a ledger of another group for the same messages.
func (l *ledger) shared() *ledger {
	other := l.e.ledger()
	other.mu, other.published, other.byKey, other.keyOf = l.mu, l.published, l.byKey, l.keyOf
	return other
}

// unpublish takes back a message that was definitely not published.
func (l *ledger) unpublish(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.published, id)
}

// handler is a handler that keeps the ledger around work, which may be nil.
func (l *ledger) handler(work func(ctx context.Context, m *bus.Message) error) func(context.Context, *bus.Message) error {
	return func(ctx context.Context, m *bus.Message) error {
		l.enter(m)
		var err error
		if work != nil {
			err = work(ctx, m)
		}
		l.leave(m)
		if err == nil {
			l.succeed(m)
		}
		return err
	}
}

func (l *ledger) enter(m *bus.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.published[m.ID]; !ok {
		l.strange = append(l.strange, m.ID)
	}
	key := l.keyOf[m.ID]
	if m.Key != key {
		l.e.errorf("%s was published with key %q, and came with %q", m.ID, key, m.Key)
	}
	if other, ok := l.active[key]; ok && key != "" {
		l.e.errorf("%s and %s of key %s were handled at once", other, m.ID, key)
	}
	l.active[key] = m.ID
	l.now++
	l.most = max(l.most, l.now)
}

func (l *ledger) leave(m *bus.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now--
	delete(l.active, l.keyOf[m.ID])
}

func (l *ledger) succeed(m *bus.Message) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := l.keyOf[m.ID]
	l.calls[m.ID]++
	l.order[key] = append(l.order[key], l.published[m.ID])
}

// distinct counts the different messages handled so far.
func (l *ledger) distinct() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}

// complete waits until each published message has been handled.
func (l *ledger) complete() {
	l.waitFor(func() int { return len(l.published) })
}

// waitFor waits until so many different messages have been handled.
func (l *ledger) waitFor(count func() int) {
	for {
		l.mu.Lock()
		enough := len(l.calls) >= count()
		l.mu.Unlock()
		if enough {
			return
		}
		l.e.pauseOr(2*time.Millisecond, l.missing)
	}
}

// missing describes the messages not handled yet.
func (l *ledger) missing() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var ids []string
	for id := range l.published {
		if l.calls[id] == 0 {
			ids = append(ids, id)
		}
	}
	return fmt.Sprintf("%d of %d messages were not handled: %s", len(ids), len(l.published), first(ids))
}

func first(ids []string) string {
	if len(ids) > 3 {
		return strings.Join(ids[:3], ", ") + ", …"
	}
	return strings.Join(ids, ", ")
}

// exact reports every message that was lost, repeated, out of order or never published.
func (l *ledger) exact() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var lost, repeated []string
	for id := range l.published {
		switch n := l.calls[id]; {
		case n == 0:
			lost = append(lost, id)
		case n > 1:
			repeated = append(repeated, id)
		}
	}
	if len(lost) > 0 {
		l.e.errorf("%d of %d messages were lost: %s", len(lost), len(l.published), first(lost))
	}
	if len(repeated) > 0 {
		l.e.errorf("%d of %d messages were handled more than once: %s", len(repeated), len(l.published), first(repeated))
	}
	if len(l.strange) > 0 {
		l.e.errorf("%d messages came that were not published here: %s", len(l.strange), first(l.strange))
	}
	l.inOrder()
}

// inOrder reports a key with messages handled out of order. A repeat may go back, and then goes on
// from there: the numbers must grow by at most one beyond the highest so far. Call it with the lock
// held.
func (l *ledger) inOrder() {
	for key, numbers := range l.order {
		if key == "" {
			continue
		}
		highest := -1
		for i, n := range numbers {
			if n > highest+1 || i > 0 && n > numbers[i-1]+1 {
				l.e.errorf("key %s: its message %d was handled after %d", key, n, max(highest, 0))
				return
			}
			highest = max(highest, n)
		}
	}
}
