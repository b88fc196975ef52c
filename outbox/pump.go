package outbox

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
	"github.com/millrace-go/millrace/internal/logattr"
)

// pump is the relay's loop. One goroutine has all of this state; calls to the broker are goroutines
// that report back.
//
// The pump claims rows by reading them. A claim begins at the floor, below which no row is or can
// appear, and passes over the lanes in hand or blocked. So it finds the oldest row of every lane
// that it returns, however late the row was committed. This gives the order of a lane. A row is
// deleted after the broker has it.
type pump struct {
	*Relay
	lanes   map[int64]*laneRows // in hand
	ready   []*laneRows         // their first row may be sent
	blocked map[int64]*block
	failing map[string]*failingTopic // by topic
	sent    []rowID                  // rows to delete
	ended   []*laneRows              // in hand until their last rows are deleted
	held    int                      // rows in hand and not yet sent
	calls   int
	results chan *call
	size    int // of a row, on average
	term    uint64
	floor   floor
}

// laneRows are a lane's rows in hand, first to last. One of them at a time is with the broker: if
// it fails, the rows behind it must wait.
type laneRows struct {
	id   int64
	rows []row
}

type row struct {
	rowID
	topic string
	msg   *bus.Message
}

// rowID names a row to delete or change. A number alone is not enough: a restored database, or a
// replica that took over without the last transactions, gives numbers out again.
type rowID struct{ seq, lane, created int64 }

// block keeps a lane from being claimed, after its first row failed.
type block struct {
	row      rowID
	topic    string
	tries    int // of the row
	until    time.Time
	first    time.Time
	sent     int64 // the relay's count of published messages at that time
	refusals int
}

const (
	claimRows    = 4000     // rows in hand, at most
	claimBytes   = 16 << 20 // their size, about
	laneRowsMost = 64       // of a lane, where other lanes have no room
	maxCalls     = 8        // to the broker, at once
	maxSent      = 2000     // rows, before they are deleted
	// patience is the time for which lanes not in hand wait for lanes in hand.
	patience = 20 * time.Millisecond
	// minPause is the pause after a message was found or a commit announced. It grows by a quarter
	// each time. So a commit without an announcement waits for a quarter of the time since the last
	// one. This happens when the relay hears of a publish, but not of its commit.
	minPause       = time.Millisecond
	minStepTimeout = 10 * time.Second
)

func newPump(r *Relay) *pump {
	return &pump{
		Relay: r, lanes: map[int64]*laneRows{}, blocked: map[int64]*block{}, failing: map[string]*failingTopic{}, results: make(chan *call, maxCalls), size: claimBytes / 500,
	}
}

func (p *pump) run(ctx context.Context) error {
	calling, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	pause := minPause
	tries := 0                  // of the database, in a row
	var looked, quiet time.Time // quiet: the database is left alone until then
	var cost time.Duration      // of the last step
	for ctx.Err() == nil {
		p.dispatch(calling)
		wait := p.config.Poll
		now := time.Now()
		switch {
		case now.Before(quiet):
			wait = quiet.Sub(now)
		case p.calls == 0 || now.Sub(looked) >= max(patience, pause, 4*cost) || len(p.sent) >= maxSent:
			n, err := p.step(ctx)
			looked = time.Now()
			cost = looked.Sub(now)
			switch {
			case ctx.Err() != nil:
			case err != nil:
				p.failed(err)
				p.letGo() // the next connection may reach a server without these rows
				p.floor.reset()
				tries++
				wait = backoff.Pause(tries)
				quiet = now.Add(wait)
			case n > 0:
				tries, pause = 0, minPause
				continue
			default:
				tries = 0
				wait = min(pause, p.untilDue())
				pause = min(pause+pause/4, p.config.Poll)
			}
		}
		if p.calls > 0 {
			wait = patience
		}
		timer := time.NewTimer(wait)
		select {
		case c := <-p.results:
			if err := p.finish(calling, c); err != nil {
				p.drain(cancel)
				return err
			}
		case <-p.woken:
			pause = minPause
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
	p.drain(cancel)
	return nil
}

// step deletes sent rows and claims more. n is the number of claimed rows. It is bounded: a
// database connection that hangs here does not end the lease, so no other relay would take over.
func (p *pump) step(ctx context.Context) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, max(p.config.Lease, minStepTimeout))
	defer cancel()
	if err := p.remove(ctx); err != nil {
		return 0, err
	}
	p.look()
	most := min(claimRows, max(16, claimBytes/p.size))
	room := most - p.held
	if room < most/4 { // take room from a lane with many rows
		if room = min(most/4, p.fattest().surplus()); room <= 0 {
			return 0, nil
		}
	}
	n, err = p.claim(ctx, room)
	for p.held > most {
		l := p.fattest()
		if l.surplus() <= 0 {
			break
		}
		p.drop(l, len(l.rows)-min(l.surplus(), p.held-most))
	}
	return n, err
}

// fattest is the lane with the most rows in hand; nil if there is none.
func (p *pump) fattest() (fat *laneRows) {
	for _, l := range p.lanes {
		if fat == nil || len(l.rows) > len(fat.rows) {
			fat = l
		}
	}
	return fat
}

// surplus is the number of rows that the lane can give back for others.
func (l *laneRows) surplus() int {
	if l == nil {
		return 0
	}
	return len(l.rows) - laneRowsMost
}

// untilDue is the wait of the next blocked lane.
func (p *pump) untilDue() time.Duration {
	d := p.config.Poll
	now := time.Now()
	for _, b := range p.blocked {
		if left := b.until.Sub(now); left > 0 {
			d = min(d, left)
		}
	}
	return d
}

// using tells the keeper which buckets have rows in hand.
func (p *pump) using() {
	var set uint64
	for id := range p.lanes {
		set |= bucketOf(id)
	}
	p.keeper.done(set)
}

// bucketOf is the bucket of a lane, as a bit. A lane inserted by another program may be negative.
func bucketOf(lane int64) uint64 { return 1 << (lane & (buckets - 1)) }

// dispatch sends the rows that are ready, in calls of one topic.
func (p *pump) dispatch(ctx context.Context) {
	if len(p.ready) == 0 {
		return
	}
	valid := p.keeper.valid(p.term)
	for p.calls < maxCalls && len(p.ready) > 0 {
		topic := p.ready[0].rows[0].topic
		var batch, rest []*laneRows
		for _, l := range p.ready {
			switch {
			case valid&bucketOf(l.id) == 0: // another relay may have it
				p.giveBack(l)
			case len(batch) < p.config.Batch && l.rows[0].topic == topic:
				batch = append(batch, l)
			default:
				rest = append(rest, l)
			}
		}
		p.ready = rest
		if len(batch) > 0 {
			c := &call{topic: topic, lanes: batch, failing: p.failing[topic]}
			if c.failing != nil {
				c.failing.calls++
			}
			p.start(ctx, c)
		}
	}
}

// giveBack releases a lane without a row at the broker.
func (p *pump) giveBack(l *laneRows) {
	p.drop(l, 0)
	p.ended = append(p.ended, l)
}

// letGo releases all rows that are not with the broker. The table may have changed since the claim:
// other relays may have sent them.
func (p *pump) letGo() {
	for _, l := range p.ready {
		p.giveBack(l)
	}
	p.ready = nil
	for _, l := range p.lanes {
		if len(l.rows) > 1 {
			p.drop(l, 1)
		}
	}
}

// drop forgets the rows of a lane from the i-th on; a later claim reads them again.
func (p *pump) drop(l *laneRows, i int) {
	p.held -= len(l.rows) - i
	l.rows = l.rows[:i]
}

// finish takes the outcome of a call. An error ends the relay.
func (p *pump) finish(ctx context.Context, c *call) error {
	p.calls--
	if c.poison {
		p.finishPoison(c)
		return nil
	}
	if c.failing != nil {
		c.failing.calls--
	}
	var closed error
	for i, l := range c.lanes {
		switch err := c.err(i); {
		case err == nil:
			p.Relay.sent.Add(1)
			if c.failing != nil {
				c.failing.answered()
			}
			p.done(l)
		case errors.Is(err, bus.ErrClosed):
			closed = err
		default:
			p.fail(ctx, l, err)
		}
	}
	return closed
}

// done goes on with a lane after its first row only needs to be deleted.
func (p *pump) done(l *laneRows) {
	p.sent = append(p.sent, l.rows[0].rowID)
	delete(p.blocked, l.id)
	p.held--
	if l.rows = l.rows[1:]; len(l.rows) > 0 {
		p.ready = append(p.ready, l)
	} else {
		p.ended = append(p.ended, l)
	}
}

// fail decides about a lane after its first row failed: the relay tries the row again later, or
// moves it to the poison store.
func (p *pump) fail(ctx context.Context, l *laneRows, err error) {
	p.failures.Add(1)
	now := time.Now()
	b := p.blocked[l.id]
	if first := l.rows[0]; b == nil || b.row != first.rowID {
		b = &block{row: first.rowID, topic: first.topic, first: now, sent: p.Relay.sent.Load()}
		p.blocked[l.id] = b
	}
	b.tries++
	if p.refused(b, err) {
		if c := p.failing[b.topic]; c != nil {
			c.answered()
		}
		if b.refusals++; b.refusals >= maxRefusals {
			p.drop(l, 1)
			p.start(ctx, &call{topic: b.topic, lanes: []*laneRows{l}, poison: true, cause: err, block: b})
			return
		}
	}
	if b.tries == 1 {
		p.log.Tell(slog.LevelWarn, "outbox: a message was not published and its key waits", b.topic, "topic", b.topic, "id", logattr.Text(l.rows[0].msg.ID), "err", err)
	}
	p.wait(l, b)
}

// refused reports whether the broker will never take the message. A final answer may also concern
// the connection: a failed login, a missing privilege. Such an answer counts as the message's fault
// only if it has lasted, and the broker has taken other messages meanwhile.
func (p *pump) refused(b *block, err error) bool {
	return final(err) && bus.IsDefinite(err) && (ofMessage(err) || time.Since(b.first) > doubt && p.Relay.sent.Load() > b.sent)
}

// wait blocks a lane, and gives its rows back.
func (p *pump) wait(l *laneRows, b *block) {
	b.until = time.Now().Add(backoff.Pause(b.tries))
	p.giveBack(l)
}

// drain waits for pending calls, within the drain timeout, and deletes the rows that they sent.
func (p *pump) drain(cancel context.CancelFunc) {
	timeout := time.AfterFunc(p.config.DrainTimeout, cancel)
	defer timeout.Stop()
	for p.calls > 0 {
		c := <-p.results
		p.calls--
		for i, l := range c.lanes {
			switch {
			case c.err(i) != nil:
				continue
			case c.poison:
				p.nowPoisoned(c)
			default:
				p.Relay.sent.Add(1)
			}
			p.sent = append(p.sent, l.rows[0].rowID)
		}
	}
	ctx, stop := context.WithTimeout(context.Background(), max(giveUpTimeout, p.config.DrainTimeout))
	defer stop()
	if err := p.remove(ctx); err != nil {
		p.failed(err)
	}
}
