package router

import (
	"container/heap"
	"maps"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// parkedState says where a parked message is in its life.
type parkedState int8

const (
	parkedNew      parkedState = iota // not in the lot: its task is marked, or came there when the lane was gone
	parkedWaiting                     // in the lot
	parkedAway                        // in the lot, and being stored, fetched or looked at, or its poison entry is being written
	parkedInFlight                    // fetched: a task has it, and the lot knows its place only
	parkedGone                        // withdrawn, done with, or its lane is gone
)

// parkedMessage is a consumer's record in memory of a message that is parked at the broker, or on
// the way there.
type parkedMessage struct {
	driver.Parked
	state parkedState
	lane  *lane
	line  *parkedLine // of its key; nil: nobody waits for it
	// changed and withdrawn say that an injector changed or withdrew the message since it was asked
	// for.
	changed, withdrawn bool
	countsDelayed      bool // among the lot's nDelayed
	// came is one more than its position in the lane when it came, 0 if another owner parked it.
	came int64
	kept *task  // that waits in memory, because the broker does not take it
	at   int    // place among the waiting, or -1
	id   string // of the message, if a cancellation had it looked at; the canceller's
}

// inLot says whether the message waits for its due time, or is away.
func (e *parkedMessage) inLot() bool { return e.state == parkedWaiting || e.state == parkedAway }

// parkedLine is the parked messages of one key, in order. While it exists, later messages of the key go behind it.
type parkedLine struct {
	messages []*parkedMessage
}

// parkingLot is all that is parked in the lanes that a consumer owns. It is guarded by the consumer's lock.
//
// A message waits if it may be handled when it is due: the first of each line, unless messages of its key are in
// flight, and those that nobody waits for.
type parkingLot struct {
	lines     map[string]*parkedLine
	delayed   map[string][]*parkedMessage // by key: those that nobody waits for
	waiting   waitingMessages
	stored    map[parkingPlace]*parkedMessage // that are at the broker, those in flight included
	n         int                             // without those in flight
	nDelayed  int                             // of n: those that nobody waits for, because they were published with a delay
	unordered bool                            // there are no lines
}

// parkingPlace holds the part of a parked message's token that is the same in every ownership.
type parkingPlace struct {
	lane     int32
	position int64
}

func placeOf(t bus.Token) parkingPlace { return parkingPlace{t.Lane, t.Position} }

func newParkingLot(unordered bool) parkingLot {
	return parkingLot{lines: map[string]*parkedLine{}, delayed: map[string][]*parkedMessage{}, stored: map[parkingPlace]*parkedMessage{}, unordered: unordered}
}

// add takes in a message that is stored at the broker, by its position. It goes before the later
// ones of its line, and before messages without a position, because they get a later one.
func (p *parkingLot) add(e *parkedMessage) {
	i := -1
	if l := p.lines[e.Key]; l != nil && !e.Delayed {
		for i = len(l.messages); i > 0; i-- {
			if m := l.messages[i-1]; m.Token.Parked && m.Token.Position < e.Token.Position {
				break
			}
		}
	}
	p.insert(e, i, parkedWaiting)
}

// insert puts a message at place i of its key's line, or behind it if i is -1. Delayed ones have no line.
func (p *parkingLot) insert(e *parkedMessage, i int, state parkedState) {
	e.at, e.state, e.changed, e.line = -1, state, false, nil
	p.count(e, 1)
	p.place(e)
	if e.Key == "" || p.unordered && !e.Delayed {
		return
	}
	if e.Delayed {
		p.delayed[e.Key] = append(p.delayed[e.Key], e)
		return
	}
	l := p.lines[e.Key]
	if l == nil {
		l = &parkedLine{}
		p.lines[e.Key] = l
	}
	e.line = l
	if i < 0 || i > len(l.messages) {
		i = len(l.messages)
	}
	l.messages = slices.Insert(l.messages, i, e)
}

// count counts a message that comes (1) or goes (-1). Whether it is delayed may change later, so its
// coming decides.
func (p *parkingLot) count(e *parkedMessage, n int) {
	if n > 0 {
		e.countsDelayed = e.Delayed
	}
	p.n += n
	if e.countsDelayed {
		p.nDelayed += n
	}
}

// place notes where a message is at the broker.
func (p *parkingLot) place(e *parkedMessage) {
	if e.Token.Parked {
		p.stored[placeOf(e.Token)] = e
	}
}

// takeOut leaves of a message that was fetched only its place.
func (p *parkingLot) takeOut(e *parkedMessage) {
	p.unlink(e)
	e.state = parkedInFlight
}

// remove forgets a message.
func (p *parkingLot) remove(e *parkedMessage) {
	if !e.inLot() && e.state != parkedInFlight {
		return
	}
	if e.Token.Parked && p.stored[placeOf(e.Token)] == e {
		delete(p.stored, placeOf(e.Token))
	}
	if e.inLot() {
		p.unlink(e)
	}
	e.state = parkedGone
}

// unlink takes a message out of its line and from the waiting.
func (p *parkingLot) unlink(e *parkedMessage) {
	p.count(e, -1)
	if e.at >= 0 {
		heap.Remove(&p.waiting, e.at)
	}
	l := e.line
	if l == nil {
		p.removeDelayed(e)
		return
	}
	e.line = nil
	if l.messages[0] == e { // nearly always
		l.messages[0] = nil
		l.messages = l.messages[1:]
	} else if i := slices.Index(l.messages, e); i > 0 {
		l.messages = slices.Delete(l.messages, i, i+1)
	}
	if len(l.messages) == 0 {
		delete(p.lines, e.Key)
	}
}

func (p *parkingLot) removeDelayed(e *parkedMessage) {
	switch es := p.delayed[e.Key]; {
	case len(es) == 1 && es[0] == e:
		delete(p.delayed, e.Key)
	default:
		if i := slices.Index(es, e); i >= 0 {
			p.delayed[e.Key] = slices.Delete(es, i, i+1)
		}
	}
}

// wait has a message handled when it is due, if it is the first of its line.
func (p *parkingLot) wait(e *parkedMessage) {
	if e.state != parkedWaiting || e.at >= 0 || (e.line != nil && e.line.messages[0] != e) {
		return
	}
	heap.Push(&p.waiting, e)
}

// dropGone forgets all messages parked in lanes that are gone, also those being fetched: the lane
// may come back before the fetch does. It returns the tasks that were kept for them in memory, and
// the messages that are first in their line now.
func (p *parkingLot) dropGone() (kept []*task, first []*parkedMessage) {
	forget := func(e *parkedMessage) bool {
		if !e.lane.gone() {
			return false
		}
		if e.inLot() {
			p.count(e, -1)
		}
		if e.state, e.line = parkedGone, nil; e.kept != nil {
			kept = append(kept, e.kept)
			e.kept = nil
		}
		return true
	}
	maps.DeleteFunc(p.stored, func(_ parkingPlace, e *parkedMessage) bool { return forget(e) })
	for key, l := range p.lines {
		head := l.messages[0]
		if l.messages = slices.DeleteFunc(l.messages, forget); len(l.messages) == 0 {
			delete(p.lines, key)
		} else if l.messages[0] != head {
			first = append(first, l.messages[0])
		}
	}
	for key, es := range p.delayed {
		if es = slices.DeleteFunc(es, forget); len(es) == 0 {
			delete(p.delayed, key)
		} else {
			p.delayed[key] = es
		}
	}
	p.waiting = slices.DeleteFunc(p.waiting, func(e *parkedMessage) bool {
		if !forget(e) {
			return false
		}
		e.at = -1
		return true
	})
	for i, e := range p.waiting {
		e.at = i
	}
	heap.Init(&p.waiting)
	return kept, first
}

// nextDue is when the next message is due.
func (p *parkingLot) nextDue() (time.Time, bool) {
	if len(p.waiting) == 0 {
		return time.Time{}, false
	}
	return p.waiting[0].Due, true
}

// due takes up to n messages that are due: the first of each line brings followers with it. They are away then. Those that were kept in
// memory need not be fetched, and do not count.
func (p *parkingLot) due(now time.Time, n int) (stored, kept []*parkedMessage) {
	for len(p.waiting) > 0 && !p.waiting[0].Due.After(now) {
		if p.waiting[0].kept != nil {
			kept = append(kept, heap.Pop(&p.waiting).(*parkedMessage))
			continue
		}
		if len(stored) >= n {
			break
		}
		e := heap.Pop(&p.waiting).(*parkedMessage)
		e.state, e.changed = parkedAway, false
		stored = append(stored, e)
		if e.line == nil {
			continue
		}
		for _, f := range e.line.messages[1:min(len(e.line.messages), followers)] {
			if f.state == parkedAway || f.kept != nil || f.Due.After(now) || len(stored) >= n {
				break
			}
			f.state, f.changed = parkedAway, false
			stored = append(stored, f)
		}
	}
	return stored, kept
}

// followers is how many messages of one line are fetched at once.
const followers = 32

// waitingMessages are those that may be handled when they are due, the earliest first, and by position if they are due
// at the same time.
type waitingMessages []*parkedMessage

func (h waitingMessages) Len() int { return len(h) }

func (h waitingMessages) Less(i, j int) bool {
	if !h[i].Due.Equal(h[j].Due) {
		return h[i].Due.Before(h[j].Due)
	}
	return h[i].Token.Position < h[j].Token.Position
}

func (h waitingMessages) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].at, h[j].at = i, j
}

// Push implements heap.Interface.
func (h *waitingMessages) Push(x any) {
	e := x.(*parkedMessage)
	e.at = len(*h)
	*h = append(*h, e)
}

// Pop implements heap.Interface.
func (h *waitingMessages) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.at = -1
	return e
}
