package poison

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Options configure Replay and Drop.
type Options struct {
	// DryRun only counts the matching entries.
	DryRun bool
	// Expect is the expected number of matching entries. If the number differs, nothing is done.
	// nil allows any number.
	Expect *int
	// Progress is called now and then with the number of finished entries and of all entries.
	Progress func(done, total int)
}

// Result is the outcome of Replay or Drop.
type Result struct {
	// Matched counts the matching entries, Done those replayed or dropped. The others remain
	// stored.
	Matched int `json:"matched"`
	Done    int `json:"done"`
}

// chunk is the number of entries replayed or dropped at once. An interruption may repeat a chunk.
const chunk = 100

// Replay gives the matching entries, oldest first, back to the handlers that refused them. An entry
// is removed once its message is safe with the group. After an interruption in between, a message
// may be replayed twice, with the same id, but none is lost. Attempts begin at 1 again;
// [bus.Failure].Replays counts.
//
// Replay fails with bus.ErrUnsupported on a broker that cannot park messages. It leaves out entries
// of class [driver.Unreadable]: it replays all others, then fails with bus.ErrInvalid.
func (q *Queue) Replay(ctx context.Context, f Filter, o Options) (Result, error) {
	injector, ok := bus.As[driver.Injector](q.bus)
	if !ok {
		return Result{}, fmt.Errorf("poison queue of group %q: %w: %s cannot give a message to one group; publish it again instead", q.group, bus.ErrUnsupported, q.bus.Driver().Capabilities().Broker)
	}
	return q.each(ctx, f, o, isReadable, func(topic string, entries []driver.PoisonEntry) error {
		ps := make([]driver.Parking, len(entries))
		for i, e := range entries {
			ps[i] = replayed(&e)
		}
		return injector.Inject(ctx, topic, q.group, ps)
	})
}

// replayed is an entry's message to park: at its old place if its key waits there, else as a new
// message.
func replayed(e *driver.PoisonEntry) driver.Parking {
	p := driver.Parking{Delayed: !e.Waits, Delivery: bus.Delivery{
		Message: e.Message, Handler: e.Handler, Attempt: 1, FirstSeen: time.Now(),
		Failure: &bus.Failure{Replays: e.Failure.Replays + 1},
	}}
	if e.Waits {
		p.Token = bus.Token{Lane: e.Lane, Position: e.Position, Parked: true}
	}
	return p
}

// Drop removes the matching entries for good. If a key waits for an entry, the key's later messages
// go on.
func (q *Queue) Drop(ctx context.Context, f Filter, o Options) (Result, error) {
	injector, _ := bus.As[driver.Injector](q.bus)
	return q.each(ctx, f, o, nil, func(topic string, entries []driver.PoisonEntry) error {
		var waiting []driver.Parking
		for _, e := range entries {
			if e.Waits && isReadable(&e) {
				waiting = append(waiting, driver.Parking{Withdraw: true, Delivery: bus.Delivery{Message: e.Message, Token: bus.Token{Lane: e.Lane, Position: e.Position, Parked: true}}})
			}
		}
		if len(waiting) == 0 {
			return nil
		}
		if injector == nil {
			return fmt.Errorf("%w: %s cannot withdraw the message for which a key waits", bus.ErrUnsupported, q.bus.Driver().Capabilities().Broker)
		}
		if err := injector.Inject(ctx, topic, q.group, waiting); !errors.Is(err, bus.ErrNotFound) {
			return err
		}
		return nil // the topic is gone, so nothing waits
	})
}

// isReadable reports whether an entry holds a message.
func isReadable(e *driver.PoisonEntry) bool { return e.Failure.Class != driver.Unreadable }

// each finds the matching entries, calls do with them in chunks of one topic, and removes them. It
// leaves out entries for which can is false, which is an error; nil is true for all.
func (q *Queue) each(ctx context.Context, f Filter, o Options, can func(*driver.PoisonEntry) bool, do func(topic string, entries []driver.PoisonEntry) error) (Result, error) {
	ids, err := q.ids(ctx, f)
	r := Result{Matched: len(ids)}
	if err != nil {
		return r, err
	}
	if o.Expect != nil && *o.Expect != len(ids) {
		return r, fmt.Errorf("poison queue of group %q: %w: %d entries match, and %d were expected: nothing was done", q.group, bus.ErrInvalid, len(ids), *o.Expect)
	}
	if o.DryRun {
		return r, nil
	}
	// A second look: bodies are large, and another caller may replay or drop some meanwhile.
	var entries []driver.PoisonEntry
	var missing error // topics
	leftOut := 0
	flush := func() error {
		done, err := q.finish(ctx, entries, do)
		r.Done += done
		entries = entries[:0]
		if o.Progress != nil {
			o.Progress(r.Done, r.Matched)
		}
		switch {
		case errors.Is(err, bus.ErrNotFound):
			missing = err
			return nil
		case err != nil:
			return fmt.Errorf("poison queue of group %q: %d of %d entries done: %w", q.group, r.Done, r.Matched, err)
		}
		return nil
	}
	for e, err := range q.store.List(ctx) {
		if err != nil {
			return r, fmt.Errorf("poison queue of group %q: %d of %d entries done: %w", q.group, r.Done, r.Matched, err)
		}
		if !ids[e.ID] {
			continue
		}
		if can != nil && !can(&e) {
			leftOut++
			continue
		}
		if entries = append(entries, e); len(entries) == chunk {
			if err := flush(); err != nil {
				return r, err
			}
		}
	}
	if err := flush(); err != nil {
		return r, err
	}
	if leftOut > 0 {
		missing = errors.Join(missing, fmt.Errorf("%w: %d entries cannot be read: show them, and drop them", bus.ErrInvalid, leftOut))
	}
	if missing != nil {
		return r, fmt.Errorf("poison queue of group %q: %d of %d entries done: %w", q.group, r.Done, r.Matched, missing)
	}
	return r, nil
}

func (q *Queue) ids(ctx context.Context, f Filter) (map[string]bool, error) {
	ids := map[string]bool{}
	for e, err := range q.List(ctx, f) {
		if err != nil {
			return ids, err
		}
		ids[e.ID] = true
	}
	return ids, nil
}

// finish calls do for the entries of each topic, and removes them.
func (q *Queue) finish(ctx context.Context, entries []driver.PoisonEntry, do func(topic string, entries []driver.PoisonEntry) error) (done int, err error) {
	var topics []string
	byTopic := map[string][]driver.PoisonEntry{}
	for _, e := range entries {
		if byTopic[e.Topic] == nil {
			topics = append(topics, e.Topic)
		}
		byTopic[e.Topic] = append(byTopic[e.Topic], e)
	}
	var failed error
	for _, topic := range topics {
		switch err := do(topic, byTopic[topic]); {
		case errors.Is(err, bus.ErrNotFound): // the others are not affected
			failed = errors.Join(failed, fmt.Errorf("topic %q does not exist: create the topic, or drop its entries: %w", topic, err))
			continue
		case err != nil:
			return done, errors.Join(failed, err)
		}
		var gone []string
		for _, e := range byTopic[topic] {
			gone = append(gone, e.ID)
		}
		if err := q.store.Remove(ctx, gone...); err != nil {
			return done, err
		}
		done += len(gone)
	}
	return done, failed
}
