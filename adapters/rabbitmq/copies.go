package rabbitmq

import (
	"context"
	"errors"
	"maps"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
)

// A queue drops a message that it has taken back more often than its delivery limit says. RabbitMQ
// 4 has a limit of 20 for queues that say nothing, and an operator may have set another by a
// policy. Whatever ends a channel counts.
//
// So a record that comes back for the third time is written anew, as a copy, before it is needed: a
// copy begins at 0. The record is held until the copy is known to be stored. An owner that dies in
// between leaves both, and the higher copy counts.

const (
	// maxReturns is from how many returns on a record is copied.
	maxReturns = 3
	// maxCopies and maxCopyBytes bound the records that wait for a copy. A record without room is
	// copied when it comes back again.
	maxCopies    = 512
	maxCopyBytes = 4 << 20
)

// parkedCopy is a record to be written anew.
type parkedCopy struct {
	amqp.Publishing
	position int64 // 0 for one that is no parked message
	revision int64
	copied   int64
	tag      uint64 // of the one that it replaces
}

// copyRecord has the record of a parked message written anew. At position 0 it takes a record about
// which nothing is known. It returns false if there is no room.
func (p *parking) copyRecord(d *amqp.Delivery, position int64) bool {
	if len(p.copies) >= maxCopies || p.copyBytes >= maxCopyBytes {
		return false
	}
	c := parkedCopy{republish(d), position, number(d, revisionHeader), number(d, copyHeader) + 1, d.DeliveryTag}
	c.Headers = maps.Clone(c.Headers) // the delivery's are changed when it is decoded
	if position > 0 {
		c.Headers[copyHeader] = c.copied
	}
	p.copies = append(p.copies, c)
	p.copyBytes += len(c.Body)
	p.wake()
	return true
}

func (p *parking) takeCopies() []parkedCopy {
	copies := p.copies
	p.copies, p.copyBytes = nil, 0
	return copies
}

// dropCopies gives up copies that were not written.
func (p *parking) dropCopies(copies []parkedCopy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range copies {
		if e := p.entries[c.position]; e != nil {
			e.copying = false
		}
		p.strangerStays(c.tag)
	}
}

func (p *parking) strangerStays(tag uint64) {
	if s, held := p.strangers[tag]; held {
		s.copying = false
		p.strangers[tag] = s
	}
}

// writeCopies writes copies of messages that are still parked. It returns false if it cannot write
// some of them.
func (p *parking) writeCopies(ctx context.Context, copies []parkedCopy) bool {
	p.mu.Lock()
	n := 0
	for _, c := range copies {
		e := p.entries[c.position]
		if e == nil && c.position > 0 {
			continue // settled meanwhile
		}
		if e != nil {
			e.coming++
		}
		copies[n] = c
		n++
	}
	copies = copies[:n]
	p.mu.Unlock()
	errs := p.source.d.pub.sendEach(ctx, n, func(i int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = p.queue, copies[i].Publishing
		x.Headers = clone(x.Headers) // which the pipeline recycles
		return nil
	})
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, c := range copies {
		stored := errs == nil || errs[i] == nil
		switch e, settled := p.entries[c.position], p.settled[c.position]; {
		case e != nil:
			e.copying = false
			switch {
			case !stored:
				e.coming = max(0, e.coming-1)
			case e.tag == c.tag:
				p.ackLocked(e.tag)
				e.tag, e.copied = 0, c.copied
			}
		case settled != nil && !stored:
			p.cameSettled(c.position, settled)
		case c.position == 0 && stored:
			delete(p.strangers, c.tag)
			p.ackLocked(c.tag)
		case c.position == 0:
			p.strangerStays(c.tag)
		}
	}
	return errors.Join(errs...) == nil
}

func clone(t amqp.Table) amqp.Table {
	c := amqplink.NewTable()
	maps.Copy(c, t)
	return c
}

// write carries out the reader's requests until the ownership ends.
func (p *parking) write() {
	p.probe()
	for {
		select {
		case <-p.work:
		case <-p.ctx.Done():
			return
		}
		for p.ctx.Err() == nil {
			p.mu.Lock()
			copies := p.takeCopies()
			commands := p.commands[:min(len(p.commands), commandBatch)]
			p.commands = p.commands[len(commands):]
			p.mu.Unlock()
			if len(copies)+len(commands) == 0 {
				break
			}
			if p.source.d.pub.link.Blocked() {
				p.dropCopies(copies)
			} else if len(copies) > 0 {
				p.writeCopies(p.ctx, copies)
			}
			p.carryOut(commands)
		}
	}
}
