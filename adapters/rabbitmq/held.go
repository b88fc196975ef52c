package rabbitmq

import (
	"cmp"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// The index of the messages parked in a lane says which record of each message is held.

const (
	// refreshBatch and refreshBytes are how much refresh gives back at a time.
	refreshBatch = 512
	refreshBytes = 4 << 20
	// settledFor is for how long after the first reading a settled message is remembered: a former
	// owner may have written a record of it a moment too late.
	settledFor = time.Minute
)

var idSeed = maphash.MakeSeed()

// take takes the record of a parked message. counts says whether this record is held from here on,
// known whether the message was known before. An unknown message is adopted: somebody parked it.
func (p *parking) take(d *amqp.Delivery) (counts, known bool) {
	position, revision, copied := number(d, positionHeader), number(d, revisionHeader), number(d, copyHeader)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open++
	if p.ended {
		return false, true
	}
	if e := p.settled[position]; e != nil {
		p.ackLocked(d.DeliveryTag)
		p.cameSettled(position, e)
		return false, true
	}
	name := text(d.Headers[commandHeader])
	e := p.entries[position]
	known = e != nil
	if !known && name != "" && p.carried[name] { // an owner before carried it out, too, and its record came late
		p.ackLocked(d.DeliveryTag)
		return false, true
	}
	if !known {
		e = &parkedEntry{}
		p.entries[position] = e
	} else if e.coming > 0 { // else it is of an owner before
		e.coming--
	}
	p.stopRenewing(e)
	if revision < e.revision || revision == e.revision && copied < e.copied {
		p.ackLocked(d.DeliveryTag)
		return false, true
	}
	if e.tag != 0 {
		p.ackLocked(e.tag)
	}
	if name != "" {
		p.carried[name] = true
	}
	e.tag, e.revision, e.copied, e.since, e.size = d.DeliveryTag, revision, copied, time.Now(), len(d.Body)
	e.stored, e.given = max(e.stored, revision), max(e.given, revision)
	e.id = maphash.String(idSeed, d.MessageId)
	if (returns(d) >= maxReturns || e.rotated) && !e.copying {
		e.copying = p.copyRecord(d, position)
	}
	e.rotated = false
	if w := e.wanted; w != nil && e.revision >= e.stored {
		e.wanted = nil
		w.found(d)
	}
	return true, known
}

// want has a parked message delivered again. It returns false if there is none.
func (p *parking) want(position int64, w *wanted) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[position]
	if e == nil || p.ended || e.wanted != nil {
		return false
	}
	e.wanted = w
	if e.tag != 0 && e.revision >= e.stored { // else it is on the way
		p.giveBackEntry(e)
	}
	return true
}

func (p *parking) unwant(position int64, call *fetching) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[position]; e != nil && e.wanted != nil && e.wanted.call == call {
		e.wanted = nil
	}
}

func (p *parking) giveBackEntry(e *parkedEntry) {
	p.giveBackLocked(e.tag)
	e.tag = 0
	e.coming++
}

// refresh has the broker deliver long-held records again, a part at a time. It removes the markers
// of other members: a member that still waits for its marker sends another. While the broker blocks
// publishers it waits for longer, because each return counts, and nothing can be copied.
func (p *parking) refresh(now time.Time) {
	age := p.bounds.refresh
	if p.source.d.pub.link.Blocked() {
		age *= 2
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for tag, s := range p.strangers {
		if s.copying || now.Sub(s.since) < age {
			continue
		}
		if s.marker {
			p.ackLocked(tag)
		} else {
			p.giveBackLocked(tag)
		}
		delete(p.strangers, tag)
	}
	if len(p.settled) > p.owed && now.Sub(p.loaded) > settledFor {
		maps.DeleteFunc(p.settled, func(_ int64, e *parkedEntry) bool { return e.coming == 0 })
	}
	if p.ended || p.renewing > 0 || len(p.copies) > 0 {
		return
	}
	if len(p.due) == 0 {
		for position, e := range p.entries {
			if e.tag != 0 && now.Sub(e.since) >= age {
				p.due = append(p.due, position)
			}
		}
		slices.Sort(p.due)
	}
	bytes := 0
	for len(p.due) > 0 && p.renewing < refreshBatch && bytes < refreshBytes {
		e := p.entries[p.due[0]]
		p.due = p.due[1:]
		if e != nil && e.tag != 0 && now.Sub(e.since) >= age {
			p.giveBackEntry(e)
			e.renewing = true
			p.renewing++
			bytes += e.size
		}
	}
}

func (p *parking) stopRenewing(e *parkedEntry) {
	if e.renewing {
		e.renewing = false
		p.renewing--
	}
}

// rotate gives back a part of the held records if the broker delivers no more before, and more is
// waited for. A returned record comes behind the rest. In a queue with a delivery limit it comes
// before the rest; then a copy of it comes behind the rest. always is set if more is there in any
// case. rotate returns how many records it gave back.
func (p *parking) rotate(always bool) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open < p.bounds.window || !always && !p.waiting() {
		return 0
	}
	var held []*parkedEntry
	for _, e := range p.entries {
		if e.tag != 0 && e.wanted == nil {
			held = append(held, e)
		}
	}
	slices.SortFunc(held, func(a, b *parkedEntry) int { return cmp.Compare(a.tag, b.tag) })
	held = held[:min(len(held), max(1, p.bounds.window/4))]
	for _, e := range held {
		p.giveBackEntry(e)
		e.rotated = true
	}
	return len(held)
}

// lookBehind rotates the queue if the broker delivers no more, and more is there: commands, perhaps.
func (p *parking) lookBehind() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open < p.bounds.window || p.looking || p.ended {
		return
	}
	p.looking = true
	p.workers.Go(func() {
		p.rpc.Lock()
		q, err := p.ch.QueueDeclarePassive(p.queue, true, false, false, false, nil)
		p.rpc.Unlock()
		if err == nil && q.Messages > 0 {
			p.rotate(true)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.looking = false
	})
}

// waiting says whether somebody waits for a record that is on the way.
func (p *parking) waiting() bool {
	if p.owed > 0 {
		return true
	}
	for _, e := range p.entries {
		if e.wanted != nil || e.renewing {
			return true
		}
	}
	return false
}

var errFull = errors.New("no more messages can be parked in the lane until some of them are handled")

// place gives a message that is about to be parked its position and revision. A message that is
// perhaps parked already keeps its position. place fails if the lane is not ours any more, or full.
func (p *parking) place(t bus.Token) (position, revision int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return 0, 0, bus.ErrStale
	}
	position = t.Position
	if !t.Parked {
		var again bool
		if position, again = p.origins[t.Position]; !again {
			if len(p.entries) >= p.bounds.room {
				return 0, 0, fmt.Errorf("%d messages are parked: %w", len(p.entries), errFull)
			}
			position = p.clock.Next()
		}
	}
	return position, p.revise(position), nil
}

// revise gives out the next revision of a parked message.
func (p *parking) revise(position int64) int64 {
	e := p.entries[position]
	if e == nil {
		if e = p.settled[position]; e == nil {
			e = &parkedEntry{}
		} else if e.coming > 0 { // a record of before is still to come
			p.owed--
		}
		delete(p.settled, position)
		p.entries[position] = e
	}
	e.given++
	e.coming++
	return e.given
}

// stored notes that the queue has a revision of the message with this token.
func (p *parking) stored(t bus.Token, position, revision int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !t.Parked {
		delete(p.origins, t.Position)
	}
	if e := p.entries[position]; e != nil {
		e.stored = max(e.stored, revision)
		e.unknown = false
	}
}

// notStored notes that a revision is not known to be stored. t is the token of the message. Unless
// the failure is definite, the record may still come, and the next try has the same position.
func (p *parking) notStored(t bus.Token, position int64, definite bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[position]
	if e == nil {
		if e = p.settled[position]; e != nil {
			p.cameSettled(position, e)
		}
		return
	}
	e.coming = max(0, e.coming-1)
	if t.Parked {
		return
	}
	if e.unknown = e.unknown || !definite; e.unknown {
		p.origins[t.Position] = position
	} else {
		delete(p.entries, position)
	}
}

// settle removes a parked message. It returns false if the lane is not ours any more.
func (p *parking) settle(position int64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ended {
		return false
	}
	p.remove(position)
	return true
}

// remove is settle with the lock held.
func (p *parking) remove(position int64) {
	e := p.entries[position]
	if e == nil {
		return
	}
	delete(p.entries, position)
	p.stopRenewing(e)
	if e.wanted != nil {
		e.wanted.missing()
		e.wanted = nil
	}
	if e.tag != 0 {
		p.ackLocked(e.tag)
		e.tag = 0
	}
	if e.coming > 0 {
		p.owed++
	}
	if e.coming > 0 || time.Since(p.loaded) <= settledFor {
		p.settled[position] = e
	}
}

// cameSettled notes that a record of a settled message has come, or will not.
func (p *parking) cameSettled(position int64, e *parkedEntry) {
	if e.coming == 0 {
		return // it is of an owner before
	}
	if e.coming--; e.coming > 0 {
		return
	}
	if p.owed--; p.owed == 0 {
		select {
		case p.quiet <- struct{}{}:
		default:
		}
	}
	if time.Since(p.loaded) > settledFor {
		delete(p.settled, position)
	}
}
