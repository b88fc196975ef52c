package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/backoff"
)

// appender writes what concurrent calls append to streams in common statements, as the publisher
// does with messages. A stream is in one statement at a time, and once in it: so calls of this
// process never collide, and an earlier call is first.
type appender struct {
	driver *Driver

	mu      sync.Mutex
	queue   []*appending
	busy    map[streamID]struct{} // in a statement
	running int                   // goroutines that write
	ended   sync.WaitGroup
	solo    chan struct{} // has room for the connections of those who wait for somebody else's transaction
}

type streamID struct {
	topic  int64
	stream string
}

// appending is one call. Its fields from sent on are guarded by appender.mu.
type appending struct {
	Append
	topic topic
	rows  int
	bytes int
	done  chan struct{}

	sent  bool // it may be with the database
	left  bool // the caller does not wait any more
	again bool // an earlier try had no answer
	err   error
}

// heldPatience is how long a statement waits for a stream that somebody else's transaction has
// appended to, before those that do not need the stream go on without it. The one that does then
// waits alonePatience at a time, in alternation with others like it, that use mostSolo connections.
const (
	heldPatience  = 100 * time.Millisecond
	alonePatience = 250 * time.Millisecond
	mostSolo      = 2
)

func (p *appender) init(d *Driver) {
	p.driver, p.busy, p.solo = d, map[streamID]struct{}{}, make(chan struct{}, mostSolo)
}

// Append implements eventstore.Backend.
func (e *events) Append(ctx context.Context, parts []eventstore.Part) ([]eventstore.Appended, error) {
	d := e.driver
	if !d.enter() {
		return nil, d.fail("append", e.topic.name, bus.ErrClosed)
	}
	defer d.calls.Done()
	if err := ctx.Err(); err != nil {
		return nil, d.fail("append", e.topic.name, err)
	}
	a := &appending{topic: e.topic, done: make(chan struct{})}
	for _, p := range parts {
		a.write(p)
	}
	d.appender.add(a)
	if err := d.appender.outcome(ctx, a); err != nil {
		return nil, err
	}
	if !a.Done {
		return e.refused(ctx, parts, a)
	}
	done := make([]eventstore.Appended, len(parts))
	for i, w := range a.Writes {
		done[i] = eventstore.Appended{Version: w.Head + int64(len(w.Events)), Position: eventstore.Position(w.Last)}
	}
	return done, nil
}

func (a *appending) write(p eventstore.Part) {
	a.Writes = append(a.Writes, StreamWrite{Stream: p.Stream, Shard: Shard(p.Stream, a.topic.shards), Expected: p.Expected.Version(), Events: p.Events})
	a.rows += len(p.Events)
	for _, m := range p.Events {
		a.bytes += m.Size()
	}
}

// refused says why an append was refused, unless all of it is there already.
func (e *events) refused(ctx context.Context, parts []eventstore.Part, a *appending) ([]eventstore.Appended, error) {
	d := e.driver
	var refusal error
	done := make([]eventstore.Appended, len(parts))
	repeated := 0
	for i := range a.Writes {
		w := &a.Writes[i]
		if w.Fits() {
			continue
		}
		var err error
		if done[i], err = e.repeated(ctx, w); err != nil { // it may be there
			return nil, &bus.Error{Op: "append", Broker: d.dialect.Name, Topic: e.topic.name, Err: err, Retryable: true}
		}
		if done[i].Repeated {
			repeated++
			done[i].Repeated = !a.again
		} else if refusal == nil {
			refusal = refusalOf(w)
		}
	}
	if repeated == len(parts) {
		return done, nil
	}
	if refusal == nil { // half of it is there
		refusal = refusalOf(&a.Writes[slices.IndexFunc(a.Writes, func(w StreamWrite) bool { return !w.Fits() })])
	}
	return nil, d.final("append", e.topic.name, refusal)
}

func refusalOf(w *StreamWrite) error {
	if w.Closed {
		return fmt.Errorf("stream %q: %w", w.Stream, eventstore.ErrClosed)
	}
	return &eventstore.Conflict{Stream: w.Stream, Expected: eventstore.At(w.Expected), Actual: w.Head}
}

// final is fail for what no repetition changes.
func (d *Driver) final(op, topic string, err error) error {
	return &bus.Error{Op: op, Broker: d.dialect.Name, Topic: topic, Err: err, Definite: true}
}

// repeated looks whether the events are there from the expected version on.
func (e *events) repeated(ctx context.Context, w *StreamWrite) (done eventstore.Appended, err error) {
	if w.Expected < 0 {
		return done, nil
	}
	err = e.call(ctx, "append", func(ctx context.Context) error {
		var there []string
		var seq int64
		err := collect(ctx, e.driver.store.DB(), func(rows *sql.Rows) error {
			var id string
			err := rows.Scan(&id, &seq)
			there = append(there, id)
			return err
		}, e.ids, []byte(w.Stream), w.Expected, len(w.Events))
		if err == nil && slices.EqualFunc(there, w.Events, func(id string, m *bus.Message) bool { return id == m.ID }) {
			done = eventstore.Appended{Version: w.Expected + int64(len(there)), Position: eventstore.Position(seq), Repeated: true}
		}
		return err
	})
	return done, err
}

func (p *appender) add(a *appending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, a)
	p.start()
}

// start has another goroutine write, if that makes sense. The lock is held.
func (p *appender) start() {
	d := p.driver.dialect
	if len(p.queue) > 0 && (p.running == 0 || p.running < d.Writers && len(p.queue) >= d.SpillRows) {
		p.running++
		p.ended.Go(p.run)
	}
}

// outcome waits for the outcome of a. If the context ends before a was sent, a never will be.
func (p *appender) outcome(ctx context.Context, a *appending) error {
	select {
	case <-a.done:
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-a.done:
		return a.err
	default:
		a.left = true
		return &bus.Error{Op: "append", Broker: p.driver.dialect.Name, Topic: a.topic.name, Err: ctx.Err(), Definite: !a.sent, Retryable: true}
	}
}

// run writes until nothing is left that can be written now.
func (p *appender) run() {
	for {
		runtime.Gosched() // callers that the last statement has woken may append again at once: let them, to go along
		batch := p.take()
		if batch == nil {
			return
		}
		p.send(batch, heldPatience)
	}
}

// take takes calls of one store from the queue: as many as fit into a statement, none whose stream
// is in another one or wanted by an earlier call. With nothing to take, one goroutine less is
// running: who frees a stream starts one.
func (p *appender) take() (batch []*appending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	d := p.driver.dialect
	wanted := map[streamID]struct{}{}
	rows, bytes := 0, 0
	p.queue = slices.DeleteFunc(p.queue, func(a *appending) bool {
		if a.left {
			return true
		}
		full := len(batch) > 0 && (batch[0].topic.id != a.topic.id || rows+a.rows > d.BatchRows || bytes+a.bytes > d.BatchBytes)
		free := true
		for _, id := range a.streams() {
			_, busy := p.busy[id]
			_, before := wanted[id]
			free = free && !busy && !before
			wanted[id] = struct{}{}
		}
		if full || !free {
			return false
		}
		batch = append(batch, a)
		rows, bytes = rows+a.rows, bytes+a.bytes
		return true
	})
	for _, a := range batch {
		for _, id := range a.streams() {
			p.busy[id] = struct{}{}
		}
	}
	if batch == nil {
		p.running--
	}
	return batch
}

func (a *appending) streams() []streamID {
	ids := make([]streamID, len(a.Writes))
	for i := range a.Writes {
		ids[i] = streamID{a.topic.id, a.Writes[i].Stream}
	}
	return ids
}

// send writes a batch, however often it takes, as long as that cannot write anything twice.
func (p *appender) send(batch []*appending, wait time.Duration) {
	d := p.driver
	for b := (backoff.Backoff{}); ; {
		if batch = p.waitedFor(batch); len(batch) == 0 {
			return
		}
		appends := make([]*Append, len(batch))
		for i, a := range batch {
			a.Done = false
			appends[i] = &a.Append
		}
		err := p.try(batch[0], appends, wait)
		if err == nil {
			p.finish(batch, nil)
			return
		}
		_, uncertain := errors.AsType[*Uncertain](err)
		fault := d.store.Fault(err)
		if fault.TooLarge {
			err = errors.Join(bus.ErrTooLarge, err)
		}
		switch {
		case errors.Is(err, ErrRaced):
			continue
		case errors.Is(err, ErrHeld) && len(batch) == 1 && wait == heldPatience:
			p.alone(batch)
			return
		case errors.Is(err, ErrHeld) && len(batch) == 1:
			if !d.isClosing() { // the transaction may take longer than Close should
				continue
			}
		case len(batch) > 1 && (errors.Is(err, ErrHeld) || fault.OfMessage):
			half := len(batch) / 2
			p.send(batch[:half], wait)
			p.send(batch[half:], wait)
			return
		case uncertain:
			batch = p.doubt(batch, err)
			fallthrough
		case fault.Retryable && !fault.Denied:
			if len(batch) == 0 || sleep(b.Next(), d.closing, nil) {
				continue
			}
		}
		p.fail(batch, err, fault.Retryable)
		return
	}
}

func (d *Driver) isClosing() bool {
	select {
	case <-d.closing:
		return true
	default:
		return false
	}
}

func (p *appender) try(first *appending, appends []*Append, wait time.Duration) error {
	if wait == alonePatience {
		p.solo <- struct{}{}
		defer func() { <-p.solo }()
	}
	ctx, cancel := context.WithTimeout(p.driver.io, callTimeout)
	defer cancel()
	return p.driver.store.AppendEvents(ctx, first.topic.id, appends, wait)
}

// alone has a call that waits for somebody else's transaction wait beside the others.
func (p *appender) alone(batch []*appending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended.Go(func() { p.send(batch, alonePatience) })
}

// waitedFor leaves out the calls whose callers have left, and notes that the others are on their
// way.
func (p *appender) waitedFor(batch []*appending) (kept []*appending) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range batch {
		if a.left {
			p.release(a)
		} else {
			a.sent = true
			kept = append(kept, a)
		}
	}
	return kept
}

// doubt keeps the calls that can be repeated although they may have been written: by version and
// ids it is seen whether they are there.
func (p *appender) doubt(batch []*appending, err error) (kept []*appending) {
	var lost []*appending
	for _, a := range batch {
		if slices.ContainsFunc(a.Writes, func(w StreamWrite) bool { return w.Expected < 0 }) {
			lost = append(lost, a)
		} else {
			a.again = true
			kept = append(kept, a)
		}
	}
	p.finish(lost, func(a *appending) error {
		return &bus.Error{Op: "append", Broker: p.driver.dialect.Name, Topic: a.topic.name, Err: err, Retryable: true}
	})
	return kept
}

func (p *appender) fail(batch []*appending, err error, retryable bool) {
	p.finish(batch, func(a *appending) error {
		return &bus.Error{Op: "append", Broker: p.driver.dialect.Name, Topic: a.topic.name, Err: err, Definite: !a.again, Retryable: retryable}
	})
}

// finish gives calls their outcome.
func (p *appender) finish(batch []*appending, failure func(*appending) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	written := map[int64]bool{}
	for _, a := range batch {
		if failure != nil {
			a.err = failure(a)
		}
		written[a.topic.id] = written[a.topic.id] || a.Done
		p.release(a)
		close(a.done)
	}
	for topic, ok := range written {
		if ok {
			p.driver.hub.published(topic)
			p.driver.announcer.published(topic)
		}
	}
}

// release lets the next call have the streams of a. The lock is held.
func (p *appender) release(a *appending) {
	for _, id := range a.streams() {
		delete(p.busy, id)
	}
	p.start()
}

// wait waits until nothing is under way.
func (p *appender) wait() { p.ended.Wait() }

// AppendIn implements eventstore.Backend.
func (e *events) AppendIn(ctx context.Context, tx driver.Execer, p eventstore.Part) error {
	d := e.driver
	if !d.enter() {
		return d.fail("append", e.topic.name, bus.ErrClosed)
	}
	defer d.calls.Done()
	w := &StreamWrite{Stream: p.Stream, Shard: Shard(p.Stream, e.topic.shards), Expected: p.Expected.Version(), Events: p.Events}
	fits, err := d.store.AppendEventsIn(ctx, tx, e.topic.id, w)
	if err == nil && !fits || errors.Is(err, ErrRaced) {
		return d.final("append", e.topic.name, &eventstore.Conflict{Stream: p.Stream, Expected: p.Expected, Actual: -1})
	}
	if err != nil {
		return d.fail("append", e.topic.name, err)
	}
	return nil
}

// publishEvents appends messages that are published to a store's topic to the streams of their
// keys: those of each key together, as far as they fit into a statement.
func (d *Driver) publishEvents(ctx context.Context, t topic, msgs []*bus.Message) error {
	errs := make([]error, len(msgs))
	of := make([]*appending, len(msgs))
	byKey := map[string]*appending{} // the last one of each
	var all []*appending
	copies := make([]bus.Message, len(msgs)) // they are still being sent when the caller's context ends early
	for i, m := range msgs {
		copies[i] = *m
		part, err := eventstore.Published(&copies[i])
		if err != nil {
			errs[i] = d.final("publish", t.name, err)
			continue
		}
		a := byKey[m.Key]
		if a == nil || a.rows == d.dialect.BatchRows || a.bytes+m.Size() > d.dialect.BatchBytes {
			a = &appending{topic: t, done: make(chan struct{})}
			a.write(part)
			byKey[m.Key], all = a, append(all, a)
		} else {
			a.Writes[0].Events = append(a.Writes[0].Events, part.Events...)
			a.rows, a.bytes = a.rows+1, a.bytes+m.Size()
		}
		of[i] = a
	}
	for _, a := range all {
		d.appender.add(a)
	}
	for i, a := range of {
		if a == nil {
			continue
		}
		errs[i] = d.appender.outcome(ctx, a)
		if errs[i] == nil && !a.Done {
			errs[i] = d.final("publish", t.name, refusalOf(&a.Writes[0]))
		}
	}
	if bus.PerMessage(errs) == nil {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

// errRefused is wrapped where a message that a handler emits to a store's topic is none that the
// store takes.
var errRefused = errors.New("the event store refuses the event")

// appendIn inserts records of topics of both kinds within the transaction x.
func (d *Driver) appendIn(ctx context.Context, x driver.Execer, records []Record) error {
	for len(records) > 0 {
		n := 1
		isStore := records[0].Topic < 0
		for n < len(records) && (records[n].Topic == records[0].Topic || !isStore && records[n].Topic > 0) {
			n++
		}
		var err error
		if isStore {
			err = d.appendEventsIn(ctx, x, records[:n])
		} else {
			err = d.store.AppendIn(ctx, x, records[:n])
		}
		if err != nil {
			return err
		}
		records = records[n:]
	}
	return nil
}

// appendEventsIn appends records of one store to the streams of their keys.
func (d *Driver) appendEventsIn(ctx context.Context, x driver.Execer, records []Record) error {
	byKey := map[string]*StreamWrite{}
	var all []*StreamWrite
	for _, r := range records {
		part, err := eventstore.Published(r.Message)
		if err != nil {
			return fmt.Errorf("%w: %w", errRefused, err)
		}
		w := byKey[part.Stream]
		if w == nil {
			w = &StreamWrite{Stream: part.Stream, Shard: r.Shard, Expected: eventstore.Any.Version()}
			byKey[part.Stream], all = w, append(all, w)
		}
		w.Events = append(w.Events, part.Events...)
	}
	slices.SortFunc(all, func(a, b *StreamWrite) int { return strings.Compare(a.Stream, b.Stream) }) // streams are locked in one order
	for _, w := range all {
		fits, err := d.store.AppendEventsIn(ctx, x, records[0].Topic, w)
		if err != nil {
			return err
		}
		if !fits {
			return fmt.Errorf("%w: stream %q: %w", errRefused, w.Stream, eventstore.ErrClosed)
		}
	}
	return nil
}
