package sqllog

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
)

// publisher writes the messages of concurrent calls in common batches: messages that come while a
// batch is under way form the next one. Nothing waits for a timer, so a lone call is as quick as
// the database. The more messages there are, the more of them share the costly commit.
type publisher struct {
	driver *Driver

	mu      sync.Mutex
	queue   []*request
	waiting int // messages in queue
	running int // goroutines that write
	ended   sync.WaitGroup
}

// request is one call of Publish. Its fields from next on are guarded by publisher.mu.
type request struct {
	topic   string
	records []Record
	bytes   int
	done    chan struct{}

	next int     // records before it have their outcome; moved by the goroutine that writes them alone
	sent int     // those from next on before it are on their way to the database
	errs []error // of the records before next; nil: none has failed
	left bool    // the caller does not wait any more
	// unknown is the error of a part with an unknown outcome. The server may still write the part,
	// so a later part would overtake it.
	unknown error
}

// piece is a part of a request that goes into one batch.
type piece struct {
	*request
	from, to int
}

func (p *publisher) init(d *Driver) { p.driver = d }

// callTimeout bounds a single statement, so that a connection that died without a word is noticed.
const callTimeout = 30 * time.Second

// Publish implements driver.Driver.
func (d *Driver) Publish(ctx context.Context, name string, msgs []*bus.Message) error {
	if !d.enter() {
		return driver.FailAll(len(msgs), d.fail("publish", name, bus.ErrClosed))
	}
	defer d.calls.Done()
	t, err := d.topics.get(ctx, name)
	if err != nil {
		return driver.FailAll(len(msgs), d.fail("publish", name, err))
	}
	if t.isStore() {
		return d.publishEvents(ctx, t, msgs)
	}
	r := &request{topic: name, records: make([]Record, len(msgs)), done: make(chan struct{})}
	copies := make([]bus.Message, len(msgs)) // they are still being sent when the caller's context ends early
	for i, m := range msgs {
		copies[i] = *m
		r.records[i] = d.record(t, &copies[i])
		r.bytes += m.Size()
	}
	d.publisher.add(r)
	select {
	case <-r.done:
	case <-ctx.Done():
	}
	return d.publisher.outcome(ctx, r)
}

// record is a message of a topic, in the shard of its key.
func (d *Driver) record(t topic, m *bus.Message) Record {
	return Record{Topic: t.id, Shard: d.topics.shard(t, m.Key), Message: m}
}

func (p *publisher) add(r *request) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.queue = append(p.queue, r)
	p.waiting += len(r.records)
	dialect := p.driver.dialect
	if p.running == 0 || p.running < dialect.Writers && p.waiting >= dialect.SpillRows {
		p.running++
		p.ended.Go(p.run)
	}
}

// outcome returns the result of Publish. If the request is not done, its context has ended: records
// not sent by then never will be.
func (p *publisher) outcome(ctx context.Context, r *request) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	errs := r.errs
	if r.next < len(r.records) {
		r.left = true
		errs = make([]error, len(r.records))
		copy(errs, r.errs)
		for i := r.next; i < len(errs); i++ {
			errs[i] = p.failure(r, ctx.Err(), i >= r.sent, true)
		}
	}
	if errs == nil {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

func (p *publisher) failure(r *request, err error, definite, retryable bool) error {
	return &bus.Error{Op: "publish", Broker: p.driver.dialect.Name, Topic: r.topic, Err: err, Definite: definite, Retryable: retryable}
}

// run writes batches until nothing is left.
func (p *publisher) run() {
	for {
		// Callers that the last batch has woken may publish again at once: let them, for their
		// messages to go along.
		runtime.Gosched()
		batch, ok := p.take()
		if !ok {
			return
		}
		if len(batch) != 1 {
			p.send(batch)
			continue
		}
		for r := batch[0].request; r.next < len(r.records); {
			p.send([]piece{{r, r.next, p.cut(r)}})
		}
	}
}

// cut returns where the batch ends that begins with the next record of r.
func (p *publisher) cut(r *request) int {
	d := p.driver.dialect
	if r.next == 0 && len(r.records) <= d.BatchRows && r.bytes <= d.BatchBytes {
		return len(r.records)
	}
	bytes := 0
	for i := r.next; i < len(r.records); i++ {
		bytes += r.records[i].Message.Size()
		if i > r.next && (bytes > d.BatchBytes || i-r.next == d.BatchRows) {
			return i
		}
	}
	return len(r.records)
}

// take takes whole requests from the queue: as many as fit into a batch, at least one. It returns
// false, and one goroutine less is running, when there is none.
func (p *publisher) take() (batch []piece, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.running--
		return nil, false
	}
	rows, bytes, n := 0, 0, 0
	for _, r := range p.queue {
		rows += len(r.records)
		bytes += r.bytes
		if n > 0 && (rows > p.driver.dialect.BatchRows || bytes > p.driver.dialect.BatchBytes) {
			break
		}
		n++
		p.waiting -= len(r.records)
		if !r.left {
			batch = append(batch, piece{r, 0, len(r.records)})
		}
	}
	kept := copy(p.queue, p.queue[n:])
	clear(p.queue[kept:])
	p.queue = p.queue[:kept]
	return batch, true
}

// send writes one batch, however often it takes, as long as it is certain that it has not been
// written.
func (p *publisher) send(batch []piece) {
	for b := (backoff.Backoff{}); ; {
		records := p.gather(batch)
		if len(records) == 0 {
			return
		}
		ctx, cancel := context.WithTimeout(p.driver.io, callTimeout)
		err := p.driver.store.Append(ctx, records)
		cancel()
		if err == nil {
			p.finish(batch, nil, false, false)
			p.announce(records)
			return
		}
		_, uncertain := errors.AsType[*Uncertain](err)
		fault := p.driver.store.Fault(err)
		if fault.TooLarge {
			err = errors.Join(bus.ErrTooLarge, err)
		}
		switch {
		case uncertain:
			p.finish(batch, err, false, true)
			return
		case fault.OfMessage && len(records) > 1:
			first, second := halve(batch)
			p.send(first)
			p.send(second)
			return
		case fault.Retryable && !fault.Denied:
			p.takeBack(batch)
			if sleep(b.Next(), p.driver.closing, nil) {
				continue
			}
		}
		p.finish(batch, err, true, fault.Retryable)
		return
	}
}

// halve cuts a batch in two: between requests, or inside of the only one.
func halve(batch []piece) (first, second []piece) {
	if n := len(batch) / 2; n > 0 {
		return batch[:n], batch[n:]
	}
	one := batch[0]
	middle := (one.from + one.to) / 2
	return []piece{{one.request, one.from, middle}}, []piece{{one.request, middle, one.to}}
}

// gather collects the batch's records whose callers still wait and that overtake nothing of their
// call. It notes that they are on their way.
func (p *publisher) gather(batch []piece) []Record {
	p.mu.Lock()
	defer p.mu.Unlock()
	var records []Record
	for _, b := range batch {
		r := b.request
		if r.left {
			r.next = b.to
			continue
		}
		if r.unknown != nil {
			p.end(b, fmt.Errorf("an earlier message of the call has an unknown outcome: %w", r.unknown), true, true)
			continue
		}
		r.sent = b.to
		if len(batch) == 1 {
			return r.records[b.from:b.to]
		}
		records = append(records, r.records[b.from:b.to]...)
	}
	return records
}

// takeBack notes that the batch did not get through.
func (p *publisher) takeBack(batch []piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range batch {
		b.request.sent = b.from
	}
}

// finish gives the batch's records their outcome.
func (p *publisher) finish(batch []piece, err error, definite, retryable bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range batch {
		p.end(b, err, definite, retryable)
		if err != nil && !definite {
			b.unknown = err
		}
	}
}

// end gives the records of a piece their outcome. The lock is held.
func (p *publisher) end(b piece, err error, definite, retryable bool) {
	r := b.request
	if err != nil {
		if r.errs == nil {
			r.errs = make([]error, len(r.records))
		}
		failure := p.failure(r, err, definite, retryable)
		for i := b.from; i < b.to; i++ {
			r.errs[i] = failure
		}
	}
	r.next, r.sent = b.to, b.to
	if b.to == len(r.records) {
		close(r.done)
	}
}

// announce wakes the sources of the records' topics.
func (p *publisher) announce(records []Record) {
	var last int64
	for i := range records {
		if topic := records[i].Topic; topic != last { // nearly always the same
			last = topic
			p.driver.hub.published(topic)
			p.driver.announcer.published(topic)
		}
	}
}

// wait waits until nothing is under way.
func (p *publisher) wait() { p.ended.Wait() }
