package router

import (
	"container/heap"
	"time"
)

// batchQueue holds the tasks of one batch handler that may run, until there are enough for a call.
type batchQueue struct {
	list
	fill  fill
	since time.Time // when the first of them came
}

// makeReady puts a task where workers take it from. Called with the lock held, as all of this file.
func (c *consumer) makeReady(t *task) {
	c.move(t, taskReady)
	if t.route != nil && t.route.batch != nil && t.entry == nil {
		q := t.route.queue
		if q.n == 0 && q.fill.wait > 0 {
			q.since = time.Now()
			c.wakeAt(q.since.Add(q.fill.wait))
		}
		q.push(t)
		return
	}
	c.ready.push(t)
}

// due says whether to call a batch now: it is full, has waited long enough, or nothing more can
// come.
func (c *consumer) due(q *batchQueue) bool {
	return q.n > 0 && (q.n >= q.fill.n || q.fill.wait == 0 || c.flight.messages >= c.cfg.inFlight.messages || c.flight.bytes >= c.cfg.inFlight.bytes ||
		time.Since(q.since) >= q.fill.wait)
}

// takeable is the number of tasks, or batches, that workers could take now.
func (c *consumer) takeable() int {
	if c.paused || !c.probeDue() {
		return 0
	}
	n := c.ready.n
	for _, q := range c.batches {
		if c.due(q) {
			n++
		}
	}
	if c.suspended() {
		n = min(n, 1)
	}
	return n
}

// wakeWorkers sees to it that a worker takes the ready tasks. Each woken worker wakes the next if
// there is more.
func (c *consumer) wakeWorkers() {
	if c.takeable() > 0 {
		c.wakeWorker()
	}
}

// wakeWorker wakes an idle worker, or starts one more.
func (c *consumer) wakeWorker() {
	switch {
	case c.draining:
	case c.crew.idle > 0:
		c.crew.work.Signal()
	case len(c.crew.workers) < c.cfg.workers:
		w := &worker{c: c, at: -1, ids: map[string]bool{}}
		c.crew.workers = append(c.crew.workers, w)
		c.crew.running++
		go w.run()
	}
}

// shareWork is called by a worker that has taken its tasks. Tasks that one more exchange of a quick
// worker will take are not worth waking another worker for. If a call turns out slow, the watchdog
// sees to the tasks in the worker's hands.
func (c *consumer) shareWork(w *worker) {
	if w.n > 1 {
		c.guard()
	}
	if w.quick() && c.ready.n <= maxTake && len(c.batches) == 0 {
		if c.ready.n > 0 {
			c.guard()
		}
		return
	}
	c.wakeWorkers()
}

// guard starts the watchdog, unless it runs.
func (c *consumer) guard() {
	if !c.crew.watching {
		c.crew.watching = true
		c.crew.watchdog.Reset(watchdogDelay)
	}
}

// watch is the watchdog. It hands back tasks that workers have finished, so that no key waits for
// another's slow call. It wakes a worker for tasks that were taken and not begun.
func (c *consumer) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.crew.watching = false
	if c.draining {
		return
	}
	waiting := false
	for _, w := range c.crew.workers {
		c.finishHandled(w)
		if next := w.next.Load(); next == w.watched && int(next) < w.n {
			// its call lasts: others take the tasks it has not begun, in turn with the ready ones
			c.reclaim(w)
		} else {
			w.watched = next
			waiting = waiting || int(next) < w.n
		}
	}
	if waiting || c.takeable() > 0 {
		c.wakeWorker()
		c.guard()
	}
}

// reclaim makes tasks ready again that a worker has taken and not begun.
func (c *consumer) reclaim(w *worker) {
	for {
		i := int(w.next.Add(1)) - 1
		if i >= w.n {
			return
		}
		t := w.tasks[i]
		w.tasks[i] = nil
		if t == c.pausing.probe {
			c.pausing.probe = nil
		}
		if t.lane.gone() { // which waits for it until it is parked
			t.outcome = c.notBegun(t)
			c.finish(t)
			continue
		}
		c.move(t, taskReady)
		c.ready.pushFront(t)
	}
}

const (
	// maxTake is how many tasks a worker takes at once when handlers are quick; one lock then
	// serves them all. It is the number of bits of worker.finished.
	maxTake = 32
	// quick is the longest time of a handler call at which taking many tasks at once is worth more
	// than spreading them.
	quick = 20 * time.Microsecond
	// watchdogDelay is how long tasks wait behind a call that turned out slow, while others are
	// idle.
	watchdogDelay = time.Millisecond
)

// take gives w the next tasks, without waiting. It returns false if there are none.
func (c *consumer) take(w *worker) bool {
	w.n, w.many = 0, nil
	w.next.Store(0)
	if c.paused {
		return false
	}
	if c.suspended() {
		return c.takeProbe(w)
	}
	// Batches and single tasks take turns, so that neither starves.
	w.batchesFirst = !w.batchesFirst
	if w.batchesFirst {
		return c.takeBatch(w) || c.takeSingles(w) || c.steal(w)
	}
	return c.takeSingles(w) || c.takeBatch(w) || c.steal(w)
}

func (c *consumer) takeSingles(w *worker) bool {
	if w.quick() {
		return c.takeUpTo(w, maxTake)
	}
	return c.takeUpTo(w, 1)
}

func (c *consumer) takeUpTo(w *worker, most int) bool {
	n := c.ready.n
	for w.n < min(n, most) {
		t := c.ready.pop()
		if t.lane.gone() {
			t.outcome = abandon
			c.finish(t)
			n = min(n, w.n+c.ready.n)
			continue
		}
		c.move(t, taskRunning)
		w.tasks[w.n] = t
		w.n++
	}
	return w.n > 0
}

func (c *consumer) takeBatch(w *worker) bool {
	c.nextBatch++
	for i := range c.batches {
		q := c.batches[(c.nextBatch+i)%len(c.batches)] // in turns: none starves
		if !c.due(q) {
			continue
		}
		clear(w.ids)
		for q.n > 0 && len(w.many) < q.fill.n && !w.ids[q.first.h.Delivery.ID] {
			t := q.pop()
			if t.lane.gone() {
				t.outcome = abandon
				c.finish(t)
				continue
			}
			c.move(t, taskRunning)
			w.many = append(w.many, t)
			w.ids[t.h.Delivery.ID] = true
		}
		if q.n > 0 && q.fill.wait > 0 {
			q.since = time.Now()
			c.wakeAt(q.since.Add(q.fill.wait))
		}
		if len(w.many) > 0 {
			return true
		}
	}
	return false
}

// steal takes one task that another worker took but has not begun, because the one before it turned
// out to be slow.
func (c *consumer) steal(w *worker) bool {
	for _, v := range c.crew.workers {
		if v == w || v.n < 2 {
			continue
		}
		if i := int(v.next.Add(1)) - 1; i < v.n {
			w.tasks[0], w.n = v.tasks[i], 1
			v.tasks[i] = nil
			return true
		}
	}
	return false
}

// wakeAt sees to it that the timer goes off at t or earlier.
func (c *consumer) wakeAt(t time.Time) {
	d := max(time.Until(t), 0)
	if c.timer == nil {
		c.timer = time.AfterFunc(d, c.onTimer)
		c.timerAt = t
		return
	}
	if c.timerAt.IsZero() || t.Before(c.timerAt) {
		c.timer.Reset(d)
		c.timerAt = t
	}
}

// onTimer sees to everything that waits for a time, and sets the timer again for the next.
func (c *consumer) onTimer() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.timerAt = time.Time{}
	now := time.Now()
	c.wakeParker(now) // also in the drain, which waits for the parker
	if c.draining {
		return
	}
	c.endDelays(now)
	c.wakeBatches()
	c.wakeFetcher()
	c.endPause(now)
	if c.flight.full {
		c.relieve()
	}
	c.wakeWorkers()
}

// endDelays makes held tasks ready that are due.
func (c *consumer) endDelays(now time.Time) {
	for len(c.held) > 0 && !c.held[0].due.After(now) {
		if t := heap.Pop(&c.held).(*task); t.delayed {
			t.delayed, t.keyed = false, t.key != "" && !c.cfg.unordered
			c.enter(t)
		} else {
			c.makeReady(t)
		}
	}
	if len(c.held) > 0 {
		c.wakeAt(c.held[0].due)
	}
}

// wakeBatches sets the timer for batches that wait to be filled.
func (c *consumer) wakeBatches() {
	for _, q := range c.batches {
		if q.n > 0 && q.fill.wait > 0 && !c.due(q) {
			c.wakeAt(q.since.Add(q.fill.wait))
		}
	}
}
