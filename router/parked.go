package router

import (
	"container/heap"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// parkedMessage is what a consumer keeps in memory of a message that is parked at the broker, or on the way there.
type parkedMessage struct {
	bus.Parked
	lane *lane
	line *parkedLine // of its key; nil: nobody waits for it
	// away: on its way to the broker, or being fetched.
	away bool
	gone bool
	at   int    // place among the waiting, or -1
	id   string // of the message, if a cancellation had it looked at; the parker's
}

// parkedLine is the parked messages of one key, in order. While it exists, later messages of the key go behind it.
type parkedLine struct {
	lane     *lane
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
	stored    map[parkingPlace]*parkedMessage // that are at the broker
	n         int
	unordered bool // there are no lines
}

// parkingPlace is what a token of a parked message says in every ownership.
type parkingPlace struct {
	lane     int32
	position int64
}

func placeOf(t bus.Token) parkingPlace { return parkingPlace{t.Lane, t.Position} }

func newParkingLot(unordered bool) parkingLot {
	return parkingLot{lines: map[string]*parkedLine{}, delayed: map[string][]*parkedMessage{}, stored: map[parkingPlace]*parkedMessage{}, unordered: unordered}
}

// add puts a message behind the others of its line.
func (p *parkingLot) add(e *parkedMessage) { p.insert(e, -1) }

// insert puts a message at place i of its key's line, or behind it if i is -1. Free ones have no line.
func (p *parkingLot) insert(e *parkedMessage, i int) {
	e.at, e.gone, e.line = -1, false, nil
	p.n++
	p.place(e)
	if e.Key == "" || p.unordered && !e.Free {
		return
	}
	if e.Free {
		p.delayed[e.Key] = append(p.delayed[e.Key], e)
		return
	}
	l := p.lines[e.Key]
	if l == nil {
		l = &parkedLine{lane: e.lane}
		p.lines[e.Key] = l
	}
	e.line = l
	if i < 0 {
		i = len(l.messages)
	}
	l.messages = slices.Insert(l.messages, i, e)
}

// place notes where a message is at the broker.
func (p *parkingLot) place(e *parkedMessage) {
	if e.Token.Parked {
		p.stored[placeOf(e.Token)] = e
	}
}

// remove takes a message out.
func (p *parkingLot) remove(e *parkedMessage) {
	if e.gone {
		return
	}
	e.gone = true
	p.n--
	if e.Token.Parked {
		delete(p.stored, placeOf(e.Token))
	}
	if e.at >= 0 {
		heap.Remove(&p.waiting, e.at)
	}
	l := e.line
	if l == nil {
		p.removeDelayed(e)
		return
	}
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
	if e.away || e.gone || e.at >= 0 || (e.line != nil && e.line.messages[0] != e) {
		return
	}
	heap.Push(&p.waiting, e)
}

// dropGone forgets what is parked in lanes that are gone.
func (p *parkingLot) dropGone() {
	var gone []*parkedMessage
	for _, e := range p.stored { // also those that are being fetched: the lane may come back before they do
		if e.lane.gone {
			gone = append(gone, e)
		}
	}
	for _, l := range p.lines {
		if l.lane.gone {
			gone = append(gone, l.messages...)
		}
	}
	for _, e := range gone {
		p.remove(e)
	}
}

// nextDue is when the next message is due.
func (p *parkingLot) nextDue() (time.Time, bool) {
	if len(p.waiting) == 0 {
		return time.Time{}, false
	}
	return p.waiting[0].Due, true
}

// due takes up to n messages that are due: the first of each line brings followers with it. They are away then.
func (p *parkingLot) due(now time.Time, n int) []*parkedMessage {
	var due []*parkedMessage
	for len(due) < n && len(p.waiting) > 0 && !p.waiting[0].Due.After(now) {
		e := heap.Pop(&p.waiting).(*parkedMessage)
		e.away = true
		due = append(due, e)
		if e.line == nil {
			continue
		}
		for _, f := range e.line.messages[1:min(len(e.line.messages), followers)] {
			if f.away || f.Due.After(now) || len(due) == n {
				break
			}
			f.away = true
			due = append(due, f)
		}
	}
	return due
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
