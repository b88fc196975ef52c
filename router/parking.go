package router

import (
	"container/heap"
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
)

const (
	// parkFrom is the delay from which a message waits at the broker. Shorter ones are not worth the writing.
	parkFrom = time.Second
	// maxParked bounds what is parked in the lanes that a consumer owns. At the bound, what is to be parked stays in
	// flight, and the intake stops when the in-flight bound is reached.
	maxParked = 200_000
	// maxFetched bounds what has come back from the broker and is in flight, beside the in-flight bound: so that it need not
	// wait for room while the intake takes all.
	maxFetched = 64
	// blockedFor is when a message whose key waits for its replay is tried again by itself.
	blockedFor = 24 * time.Hour
)

// park sends t to the broker until it is due, and with it what waits behind it. t is counted in its lane's busy until
// it is stored. Called with the lock held, as all of this file but the goroutines.
func (c *consumer) park(t *task) {
	var behind []*task
	if t.keyed {
		behind = c.keys.detach(t)
		c.keys.leave(t)
		t.keyed = false
	}
	c.parkAt(t, 0, t.due)
	c.parkFollowers(behind, 1)
}

// mark parks a message whose handler runs, because its followers are about to be: if it fails, it has its place before
// them. If it succeeds, it is settled there.
func (c *consumer) mark(t *task) {
	if t.place != nil {
		return // it has come from there
	}
	t.place = &parkedMessage{Parked: bus.Parked{Key: t.key}, lane: t.lane, at: -1}
	t.marking = true
	c.toPark = append(c.toPark, t)
	c.parks.Signal()
}

// parkFollowers parks tasks that have not begun, in order, from place i of their line on.
func (c *consumer) parkFollowers(tasks []*task, i int) {
	for _, f := range tasks {
		f.keyed = false
		if f.place != nil && !f.place.Free { // still stored there, where it was
			c.lot.insert(f.place, i)
			f.place.away = false
			c.recycle(f)
		} else {
			f.lane.busy++
			c.parkAt(f, i, time.Time{})
		}
		i++
	}
}

// parkAt sends one task to the broker; i is its place in the line of its key, -1 the end.
func (c *consumer) parkAt(t *task, i int, due time.Time) {
	if t.place == nil {
		t.place = &parkedMessage{Parked: bus.Parked{Key: t.h.Delivery.Key}, lane: t.lane}
	}
	t.place.Due, t.place.Free, t.place.away = due, t.free, true
	c.lot.insert(t.place, i)
	c.toPark = append(c.toPark, t)
	c.parks.Signal()
}

// isParked says whether the task's key has a line.
func (c *consumer) isParked(t *task) bool {
	return len(c.lot.lines) > 0 && t.keyed && c.lot.lines[t.key] != nil
}

// reliefWindow is how long what is in flight is watched before some of it is moved to the broker.
const reliefWindow = 20 * time.Millisecond

// relieve makes room when all that is in flight waits, although workers are idle: for held messages, or behind slow
// ones. Those go to the broker. While something is being settled there will be room without it; and as long as an eighth of what may be
// in flight is finished within a window, nobody waits long: with quick handlers, keys have followers at any time.
func (c *consumer) relieve() {
	if c.unsettled > 0 || len(c.done) > 0 || !c.canPark || c.draining || c.paused || c.ready.n > 0 || c.idle == 0 && len(c.workers) == c.cfg.workers || c.lot.n+c.cfg.inFlight.messages > maxParked {
		return
	}
	now := time.Now()
	watched := now.Sub(c.reliefFrom)
	if watched < reliefWindow {
		c.wakeAt(c.reliefFrom.Add(reliefWindow))
		return
	}
	if watched > time.Second || c.ended-c.reliefEnded >= uint64(c.cfg.inFlight.messages/8+1) {
		c.reliefFrom, c.reliefEnded = now, c.ended
		c.wakeAt(now.Add(reliefWindow))
		return
	}
	held := len(c.held)
	if c.parkHeld(func(*task) bool { return true }); len(c.held) < held {
		return
	}
	for _, head := range c.keys.slots {
		for ; head != nil; head = head.chain {
			if behind := c.keys.detach(head); len(behind) > 0 {
				c.mark(head)
				c.parkFollowers(behind, 0)
			}
		}
	}
}

// parkHeld parks what is held in memory, so that it is not lost how often it was tried and how long it has to wait.
func (c *consumer) parkHeld(of func(*task) bool) {
	if !c.canPark {
		return
	}
	var parked []*task
	kept := c.held[:0]
	for _, t := range c.held {
		if of(t) && t.entry == nil {
			parked = append(parked, t)
		} else {
			kept = append(kept, t)
		}
	}
	clear(c.held[len(kept):])
	c.held = kept
	heap.Init(&c.held)
	for _, t := range parked {
		t.lane.busy++
		c.park(t)
	}
}

// parker stores messages at the broker, in batches, one call at a time.
func (c *consumer) parker() {
	defer close(c.parked)
	defer c.poisoning.Wait()
	for {
		batch := c.nextToPark()
		if batch == nil {
			return
		}
		if batch[0].cancels {
			c.cancelParked(batch)
			continue
		}
		ps := make([]bus.Parking, len(batch))
		for i, t := range batch {
			ps[i] = bus.Parking{Delivery: t.h.Delivery, Due: t.place.Due, Free: t.place.Free}
			ps[i].Token = t.token()
			if !t.marking && t.failure != nil { // its worker may be at it
				f := *t.failure
				ps[i].Failure = &f
			}
		}
		c.store(ps)
		c.stored(batch, ps)
	}
}

// nextToPark waits for what is to be parked, or for cancellations of it.
func (c *consumer) nextToPark() []*task {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.toPark) == 0 || c.lot.n > maxParked && !c.draining {
		if c.parksEnded {
			return nil
		}
		c.parks.Wait()
	}
	n, most := 1, min(len(c.toPark), maxReceive)
	for n < most && c.toPark[n].cancels == c.toPark[0].cancels {
		n++
	}
	batch := c.toPark[:n:n]
	c.toPark = c.toPark[n:]
	return batch
}

// store parks, however often it takes, until the drain's patience ends. Those that are not parked then, or are stale,
// come again to the lane's owner.
func (c *consumer) store(ps []bus.Parking) {
	source := c.source.(bus.ParkingSource)
	for b := (backoff{}); ; {
		err := source.Park(c.ctx, ps)
		if err == nil {
			return
		}
		if errors.Is(err, bus.ErrStale) {
			c.log.Debug("some messages were to be parked, but their lane has another owner; they come again", "err", err)
			return
		}
		if c.ctx.Err() != nil || errors.Is(err, bus.ErrClosed) {
			c.log.Warn("messages could not be parked; they come again", "messages", len(ps), "err", err)
			return
		}
		c.log.Warn("parking failed; trying again", "messages", len(ps), "err", err)
		b.wait(c.ctx)
	}
}

// stored notes which tasks are parked now, and lets go of them.
func (c *consumer) stored(batch []*task, ps []bus.Parking) {
	if blocked := c.place(batch, ps); len(blocked) > 0 {
		c.poisoning.Add(1)
		go c.poisonStored(blocked) // others need not wait for the poison queue
	}
}

// place puts tasks where they are parked. It returns those that are to be poisoned, too.
func (c *consumer) place(batch []*task, ps []bus.Parking) (blocked []*task) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, t := range batch {
		e := t.place
		e.away = false
		if t.marking {
			e.Token = ps[i].Token
			if t.marking = false; t.ended {
				t.ended = false
				c.finish(t)
			}
			continue
		}
		if ps[i].Token.Parked && !e.lane.gone {
			e.Token = ps[i].Token
			c.lot.place(e)
			c.await(e)
		} else {
			c.lot.remove(e)
		}
		if t.blocks && ps[i].Token.Parked {
			blocked = append(blocked, t)
			continue
		}
		t.lane.release()
		c.recycle(t)
	}
	c.wakeFetcher()
	return blocked
}

// await has the first of a message's line handled when it is due, unless messages of its key are in flight.
func (c *consumer) await(e *parkedMessage) {
	if e.line == nil {
		c.lot.wait(e)
	} else if !c.keys.has(e.Key) {
		c.lot.wait(e.line.messages[0])
	}
}

// wakeFetcher has due messages fetched, now or when the next is due.
func (c *consumer) wakeFetcher() {
	due, ok := c.lot.nextDue()
	switch {
	case !ok:
	case due.After(time.Now()):
		c.wakeAt(due)
	default:
		c.fetches.Signal()
	}
}

// fetcher brings back what is due.
func (c *consumer) fetcher() {
	dst := make([]bus.Delivery, maxFetched)
	var tokens []bus.Token
	for b := (backoff{}); ; {
		batch := c.nextToFetch()
		if batch == nil {
			return
		}
		tokens = tokens[:0]
		for _, e := range batch {
			tokens = append(tokens, e.Token)
		}
		n, err := c.fetch(c.intake, tokens, dst)
		if err == nil {
			b = backoff{}
			c.admitFetched(batch, dst[:n])
			clear(dst)
			continue
		}
		c.refetch(batch)
		if c.intake.Err() == nil {
			c.log.Warn("fetching parked messages failed; trying again", "messages", len(batch), "err", err)
		}
		b.wait(c.intake)
	}
}

func (c *consumer) nextToFetch() []*parkedMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.draining {
		if !c.paused && !c.suspended() && c.fetchedBytes < c.cfg.inFlight.bytes {
			if due := c.lot.due(time.Now(), min(maxFetched, c.cfg.inFlight.messages)-c.fetchedMessages); len(due) > 0 {
				return due
			}
		}
		c.wakeFetcher()
		c.fetches.Wait()
	}
	return nil
}

// refetch takes back messages that could not be fetched.
func (c *consumer) refetch(batch []*parkedMessage) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range batch {
		if e.away = false; !e.gone {
			c.await(e)
		}
	}
}

// admitFetched takes parked messages into the scheduler that are due.
func (c *consumer) admitFetched(batch []*parkedMessage, fetched []bus.Delivery) {
	unwrapped := unwrap(fetched)
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.draining {
		return
	}
	for _, e := range batch {
		var d *bus.Delivery
		var err error
		if len(fetched) > 0 && fetched[0].Token == e.Token { // some may be missing; the others are in order
			d, err = &fetched[0], unwrapped.at(0)
			fetched, unwrapped = fetched[1:], unwrapped.from(1)
		}
		line := e.line
		gone := e.gone || e.lane.gone
		c.lot.remove(e)
		e.away = false
		if d == nil || gone {
			if line != nil && len(line.messages) > 0 && !line.lane.gone {
				c.await(line.messages[0])
			}
			continue
		}
		c.complete(d, now)
		t := c.newTask(bus.NewHandling(e.lane.ctx, c.core.bus, *d), e.lane)
		t.place, t.fetched = e, true
		if d.Failure != nil {
			f := *d.Failure
			t.failure = &f
		}
		c.fetchedMessages++
		c.fetchedBytes += t.size
		c.admitTask(t, err)
	}
	c.wakeWorkers()
}

// Parked implements bus.ParkingObserver.
func (c *consumer) Parked(ps []bus.Parked) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range ps {
		l := c.lanes[p.Token.Lane]
		if l == nil || l.id.Epoch != p.Token.Epoch || l.gone {
			continue
		}
		old := c.lot.stored[placeOf(p.Token)]
		if old != nil && old.lane != l { // of an earlier ownership
			c.lot.remove(old)
			old = nil
		}
		switch {
		case old == nil && p.Withdrawn:
		case old == nil:
			e := &parkedMessage{Parked: p, lane: l}
			c.lot.add(e)
			c.await(e)
		case p.Withdrawn:
			line := old.line
			c.lot.remove(old)
			if line != nil && len(line.messages) > 0 {
				c.await(line.messages[0])
			}
		default:
			if old.at >= 0 {
				heap.Remove(&c.lot.waiting, old.at)
			}
			old.Due = p.Due
			c.await(old)
		}
	}
	c.wakeFetcher()
}
