package router

import (
	"fmt"
	"slices"
	"testing"
)

// All tests hold tasks to the moves that they may make.
func init() { observeMove = checkMove }

func checkMove(t *task, to taskState) {
	if !slices.Contains(moves[t.state], to) {
		panic(fmt.Sprintf("a task moves from %v to %v", t.state, to))
	}
}

// Unchecked takes the check of moves away for a benchmark.
func Unchecked(b *testing.B) {
	observeMove = nil
	b.Cleanup(func() { observeMove = checkMove })
}

// CheckStates says which task of a router is not in the one place that its state names. When the
// router rests, no task is in the hands of a goroutine, and all that are in flight must be in a
// place.
func CheckStates(r *Router, rests bool) error {
	r.core.mu.Lock()
	consumers := slices.Clone(r.core.consumers)
	r.core.mu.Unlock()
	for _, c := range consumers {
		if err := c.checkStates(rests); err != nil {
			return err
		}
	}
	return nil
}

// census is the tasks of a consumer, and where they were found.
type census struct {
	places map[*task]string
	busy   map[*lane]int // tasks for which a lane's handover waits
	err    error
}

// found notes a task in a place.
func (n *census) found(t *task, place string, want taskState) {
	if t.state != want {
		n.errorf("a task is %v, but it is in the %s", t.state, place)
	}
	if other, ok := n.places[t]; ok {
		n.errorf("a task is in the %s and in the %s", other, place)
	}
	if n.places[t] = place; t.state == taskFree {
		return
	}
	if t.busy() {
		n.busy[t.lane]++
	}
}

func (n *census) errorf(format string, args ...any) {
	if n.err == nil {
		n.err = fmt.Errorf(format, args...)
	}
}

func (n *census) list(l *list, place string, want taskState) {
	i := 0
	for t := l.first; t != nil; t = t.next {
		n.found(t, place, want)
		i++
	}
	if i != l.n {
		n.errorf("the %s says that it has %d tasks, and has %d", place, l.n, i)
	}
}

// parker notes a task that the parker has. A marked one is in another place, too.
func (n *census) parker(t *task, place string) {
	switch {
	case !t.marked():
		n.found(t, place, taskParking)
	case t.state == taskEnded:
		n.found(t, place, taskEnded)
	case t.state == taskFree:
		n.errorf("a marked task is free")
	}
}

func (c *consumer) checkStates(rests bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := &census{places: map[*task]string{}, busy: map[*lane]int{}}
	n.list(&c.ready, "ready list", taskReady)
	for _, q := range c.batches {
		n.list(&q.list, "batch queue", taskReady)
	}
	n.list(&c.poisoning.queue, "poison list", taskPoisoning)
	for _, head := range c.keys.slots {
		for ; head != nil; head = head.chain {
			if !head.keyed || head.state == taskFree || head.state == taskBlocked {
				n.errorf("the first task of a key is %v", head.state)
			}
			for t := head.behind; t != nil; t = t.next {
				n.found(t, "line of its key", taskBlocked)
			}
		}
	}
	for _, w := range c.crew.workers {
		for _, t := range w.tasks[:w.n] {
			if t != nil {
				n.found(t, "hands of a worker", taskRunning)
			}
		}
	}
	for place, tasks := range map[string][]*task{"delays": c.held, "cancellations": c.cancelling.queue, "settler's queue": c.settling.queue} {
		want := map[string]taskState{"delays": taskHeld, "cancellations": taskCancelling, "settler's queue": taskSettling}[place]
		for _, t := range tasks {
			n.found(t, place, want)
		}
	}
	for _, t := range c.parking.queue {
		n.parker(t, "parker's queue")
	}
	for _, s := range c.stuck.lines {
		for _, t := range s.tasks {
			n.parker(t, "stuck tasks")
		}
	}
	for e := range c.lot.all() {
		if e.kept != nil {
			n.found(e.kept, "lot", taskKept)
		}
	}
	inFlight := len(n.places)
	if all := c.flight.messages + c.flight.fetchedMessages; inFlight > all || rests && inFlight < all {
		n.errorf("%d tasks are in flight, and %d are in a place", all, inFlight)
	}
	for _, l := range c.lanes {
		if busy := n.busy[l]; busy > l.busy || rests && busy < l.busy {
			n.errorf("lane %d counts %d busy tasks, and %d are in a place", l.id.ID, l.busy, busy)
		}
	}
	for t := c.flight.free; t != nil; t = t.next {
		n.found(t, "free list", taskFree)
	}
	return n.err
}

// all are the messages in the lot.
func (p *parkingLot) all() map[*parkedMessage]bool {
	all := map[*parkedMessage]bool{}
	for _, l := range p.lines {
		for _, e := range l.messages {
			all[e] = true
		}
	}
	for _, es := range p.delayed {
		for _, e := range es {
			all[e] = true
		}
	}
	for _, e := range p.waiting {
		all[e] = true
	}
	return all
}
