package router_test

import (
	"context"
	"errors"
	"iter"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/router"
)

// shaky is a broker with one topic and one group. Its lanes are few and move at random, its calls take time and fail now and then. It stores what
// it is told to store and compares nothing, so that a wrong place does the harm that it can do.
type shaky struct {
	w *world

	mu       sync.Mutex
	news     *sync.Cond // Receive may have something
	lanes    []*shakyLane
	members  []*shakySource
	epoch    uint64
	poisoned []driver.PoisonEntry
}

// shakyLane is one lane. The broker's lock guards it.
type shakyLane struct {
	id      int32
	log     []*bus.Message
	read    int // place in the log of the next delivery
	settled map[int64]bool
	parked  map[int64]driver.Parking
	ids     []string // by parked position: of all that were ever parked
	owner   *shakySource
	next    *shakySource // the member that is to own the lane
	epoch   uint64
	leaving bool     // its owner is asked to hand it over
	undo    []func() // a lane that is lost takes back what nobody has committed
}

var errShaky = errors.New("the broker is shaky")

func newShaky(w *world, lanes int) *shaky {
	b := &shaky{w: w}
	b.news = sync.NewCond(&b.mu)
	for i := range lanes {
		b.lanes = append(b.lanes, &shakyLane{id: int32(i), settled: map[int64]bool{}, parked: map[int64]driver.Parking{}})
	}
	return b
}

func (b *shaky) Capabilities() bus.Capabilities {
	return bus.Capabilities{Broker: "shaky", Parking: true, Transactions: b.w.plan.guarantee == router.ExactlyOnce}
}

func (b *shaky) Close(context.Context) error { return nil }

// laneOf goes by the number of a key.
func (b *shaky) laneOf(key string) *shakyLane {
	n, _ := strconv.Atoi(key[1:])
	return b.lanes[n%len(b.lanes)]
}

func (b *shaky) Publish(_ context.Context, _ string, msgs []*bus.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range msgs {
		l := b.laneOf(m.Key)
		l.log = append(l.log, m.Clone())
	}
	b.news.Broadcast()
	return nil
}

func (b *shaky) Subscribe(_ context.Context, _ bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := &shakySource{b: b, o: o}
	b.members = append(b.members, s)
	for _, l := range b.lanes {
		if l.next == nil || b.w.chance(len(b.members)) {
			l.next = s
		}
	}
	b.spread()
	return s, nil
}

// shuffle moves lanes to other members.
func (b *shaky) shuffle() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range b.lanes {
		if !b.w.chance(3) {
			b.choose(l)
		}
	}
	b.spread()
}

// choose chooses a lane's next owner, another one if there is one.
func (b *shaky) choose(l *shakyLane) {
	old := l.next
	for l.next = nil; len(b.members) > 0 && (l.next == nil || l.next == old && len(b.members) > 1); {
		l.next = b.members[b.w.upTo(time.Duration(len(b.members)))]
	}
}

// spread has lanes go to those who are to own them.
func (b *shaky) spread() {
	give := map[*shakySource][]bus.Lane{}
	for _, l := range b.lanes {
		switch {
		case l.owner == l.next || l.leaving:
		case l.owner != nil:
			l.leaving = true
			give[l.owner] = append(give[l.owner], bus.Lane{ID: l.id, Epoch: l.epoch})
		default:
			b.epoch++
			b.w.note("lane %d goes to %p", l.id, l.next)
			l.next.o.Assigned([]bus.Lane{{ID: l.id, Epoch: b.epoch}})
			l.owner, l.epoch, l.read = l.next, b.epoch, 0
			var ps []driver.Parked
			for position := range int64(len(l.ids)) {
				if p, ok := l.parked[position]; ok {
					ps = append(ps, driver.Parked{Token: bus.Token{Lane: l.id, Epoch: l.epoch, Position: position, Parked: true}, Key: p.Key, Due: p.Due, Delayed: p.Delayed})
				}
			}
			l.tell(ps)
		}
	}
	for s, lanes := range give {
		go b.revoke(s, lanes)
	}
	b.news.Broadcast()
}

// tell tells the owner of the parked messages.
func (l *shakyLane) tell(ps []driver.Parked) {
	if len(ps) > 0 && l.owner != nil {
		l.owner.o.(driver.ParkingObserver).Parked(ps)
	}
}

// revoke asks a member to hand lanes over.
func (b *shaky) revoke(s *shakySource, lanes []bus.Lane) {
	patience := 30 * time.Second
	if !b.w.plan.calm {
		patience = 10*time.Millisecond + b.w.upTo(4*time.Second)
	}
	b.w.note("%p hands over %v", s, lanes)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if !b.w.chance(3) {
		b.w.outage()
	}
	s.o.Revoking(ctx, lanes)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.w.note("%p has handed over %v", s, lanes)
	for _, id := range lanes {
		if l := b.lanes[id.ID]; l.owner == s && l.epoch == id.Epoch {
			l.free()
		}
	}
	b.spread()
}

// free ends an ownership. Its settlements are durable.
func (l *shakyLane) free() { l.owner, l.leaving, l.undo = nil, false, nil }

// lose takes lanes from a member without asking, and gives them to any.
func (b *shaky) lose() {
	b.mu.Lock()
	defer b.mu.Unlock()
	lost := map[*shakySource][]bus.Lane{}
	for _, l := range b.lanes {
		if l.owner == nil || !b.w.chance(2) {
			continue
		}
		lost[l.owner] = append(lost[l.owner], bus.Lane{ID: l.id, Epoch: l.epoch})
		for _, f := range slices.Backward(l.undo) {
			f()
		}
		l.free()
		b.choose(l)
	}
	for s, lanes := range lost {
		b.w.note("%p loses %v", s, lanes)
		s.o.Lost(lanes, errShaky)
	}
	b.spread()
}

// Inject implements driver.Injector.
func (b *shaky) Inject(_ context.Context, _, _ string, ps []driver.Parking) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, p := range ps {
		l := b.laneOf(p.Key)
		if p.Token.Parked {
			if p.Lane != l.id || p.Position >= int64(len(l.ids)) || l.ids[p.Position] != p.ID {
				b.w.fail("%s was injected at lane %d, place %d, where it never was", p.ID, p.Lane, p.Position)
			}
			if _, ok := l.parked[p.Position]; !ok {
				continue // it is gone
			}
		}
		if p.Withdraw {
			delete(l.parked, p.Position)
		} else {
			l.put(&p)
		}
		l.tell([]driver.Parked{{
			Token: bus.Token{Lane: l.id, Epoch: l.epoch, Position: p.Position, Parked: true}, Key: p.Key, Due: p.Due, Delayed: p.Delayed, Withdrawn: p.Withdraw,
		}})
	}
	return nil
}

// put stores a message at its place, or behind all others.
func (l *shakyLane) put(p *driver.Parking) {
	if !p.Token.Parked {
		p.Token = bus.Token{Lane: l.id, Position: int64(len(l.ids)), Parked: true}
		l.ids = append(l.ids, p.ID)
	}
	p.Epoch = l.epoch
	stored := *p
	stored.Message = p.Message.Clone()
	l.parked[p.Position] = stored
}

// shakySource is a member of the group.
type shakySource struct {
	b      *shaky
	o      bus.LaneObserver
	first  int
	closed bool
	doubt  map[bus.Token]bus.Token // what was parked by a call that failed all the same
}

// lane is the lane of a token, or nil if that is stale.
func (s *shakySource) lane(t bus.Token) *shakyLane {
	if l := s.b.lanes[t.Lane]; l.owner == s && l.epoch == t.Epoch {
		return l
	}
	return nil
}

func (s *shakySource) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	if before, _ := s.b.w.faults(); before {
		return 0, errShaky
	}
	b := s.b
	b.mu.Lock()
	defer b.mu.Unlock()
	defer context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.news.Broadcast()
	})()
	for {
		switch n := s.take(dst, maxBytes); {
		case s.closed:
			return 0, bus.ErrClosed
		case n > 0:
			return n, nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		}
		b.news.Wait()
	}
}

// take is what Receive returns, lane by lane.
func (s *shakySource) take(dst []bus.Delivery, maxBytes int) (n int) {
	s.first++
	for i := range s.b.lanes {
		l := s.b.lanes[(s.first+i)%len(s.b.lanes)]
		for l.owner == s && l.read < len(l.log) {
			m, position := l.log[l.read], int64(l.read)
			switch {
			case l.settled[position]:
				l.read++
				continue
			case n == len(dst) || n > 0 && m.Size() > maxBytes:
				return n
			}
			maxBytes -= m.Size()
			l.read++
			dst[n] = bus.Delivery{Message: m.Clone(), Topic: "t", Token: bus.Token{Lane: l.id, Epoch: l.epoch, Position: position}}
			n++
		}
	}
	return n
}

func (s *shakySource) Settle(_ context.Context, tokens []bus.Token) error {
	before, after := s.b.w.faults()
	if before {
		return errShaky
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	var err error
	if s.closed {
		err = bus.ErrClosed
	} else {
		for _, t := range tokens {
			if l := s.lane(t); l == nil {
				err = bus.ErrStale
			} else {
				l.settle(t, s.b.w.plan.lazy)
			}
		}
	}
	s.b.w.note("settle %+v: %v", slices.Clone(tokens), err)
	if err == nil && after {
		return errShaky
	}
	return err
}

// SettleWith implements driver.TransactionalSource.
func (s *shakySource) SettleWith(_ context.Context, ss []driver.Settlement) error {
	if before, _ := s.b.w.faults(); before {
		return errShaky
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.closed {
		return bus.ErrClosed
	}
	errs := make([]error, len(ss))
	for i, one := range ss {
		l := s.lane(one.Token)
		if l == nil || !l.has(one.Token) {
			errs[i] = bus.ErrStale
			continue
		}
		l.settle(one.Token, false)
		for _, o := range one.Outputs {
			s.b.w.output(o.Message)
		}
	}
	s.b.w.note("settle %+v: %v", ss, errs)
	return bus.PerMessage(errs)
}

// has says whether a message is not settled.
func (l *shakyLane) has(t bus.Token) bool {
	if t.Parked {
		_, ok := l.parked[t.Position]
		return ok
	}
	return !l.settled[t.Position]
}

// settle settles a message, durably or not.
func (l *shakyLane) settle(t bus.Token, lazily bool) {
	undo := func() { delete(l.settled, t.Position) }
	if t.Parked {
		p, ok := l.parked[t.Position]
		if !ok {
			return
		}
		undo = func() { l.parked[t.Position] = p }
		delete(l.parked, t.Position)
	} else if l.settled[t.Position] {
		return
	} else {
		l.settled[t.Position] = true
	}
	if lazily {
		l.undo = append(l.undo, undo)
	}
}

// Commit implements driver.Committer.
func (s *shakySource) Commit(context.Context) error {
	before, after := s.b.w.faults()
	if before {
		return errShaky
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	for _, l := range s.b.lanes {
		if l.owner == s {
			l.undo = nil
		}
	}
	if after {
		return errShaky
	}
	return nil
}

// Park implements driver.ParkingSource. A call that is repeated, because its outcome was unknown, has the place that it had.
func (s *shakySource) Park(_ context.Context, ps []driver.Parking) error {
	before, after := s.b.w.faults()
	if before {
		return errShaky
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.closed {
		return bus.ErrClosed
	}
	errs := make([]error, len(ps))
	for i, p := range ps {
		l := s.lane(p.Token)
		if errs[i] = s.b.w.refusal(p.ID); errs[i] != nil {
			continue
		}
		if l == nil {
			errs[i] = bus.ErrStale
			continue
		}
		origin := p.Token
		if again, ok := s.doubt[origin]; ok {
			p.Token = again
		}
		if _, ok := l.parked[p.Position]; p.Token.Parked && !ok {
			ps[i].Token = p.Token
			continue // it was withdrawn
		}
		if !p.Token.Parked {
			l.settle(origin, s.b.w.plan.lazy)
		}
		l.put(&p)
		s.b.w.note("park %s: %+v becomes %+v", p.ID, origin, p.Token)
		if ps[i].Token = p.Token; after {
			if s.doubt == nil {
				s.doubt = map[bus.Token]bus.Token{}
			}
			s.doubt[origin] = p.Token
			ps[i].Token = origin
		}
	}
	switch {
	case after:
		return errShaky
	case slices.ContainsFunc(errs, func(err error) bool { return err != nil }):
		return &bus.PublishError{Errs: errs}
	}
	return nil
}

func (s *shakySource) Fetch(_ context.Context, tokens []bus.Token, dst []bus.Delivery) (n int, err error) {
	if before, _ := s.b.w.faults(); before {
		return 0, errShaky
	}
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	if s.closed {
		return 0, bus.ErrClosed
	}
	for _, t := range tokens {
		if l := s.lane(t); l != nil {
			if p, ok := l.parked[t.Position]; ok {
				dst[n] = p.Delivery
				dst[n].Message, dst[n].Token = p.Message.Clone(), t
				n++
			}
		}
	}
	return n, nil
}

func (s *shakySource) Close(context.Context) error {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.closed = true
	s.b.members = slices.DeleteFunc(s.b.members, func(m *shakySource) bool { return m == s })
	for _, l := range s.b.lanes {
		if l.owner == s {
			l.free()
		}
		if l.next == s {
			s.b.choose(l)
		}
	}
	s.b.spread()
	return nil
}

func (b *shaky) Poison(context.Context, string) (driver.PoisonStore, error) { return b, nil }

func (b *shaky) Put(_ context.Context, es ...driver.PoisonEntry) error {
	before, after := b.w.faults()
	if before {
		return errShaky
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range es {
		b.w.poisoned(e)
		if i := slices.IndexFunc(b.poisoned, func(o driver.PoisonEntry) bool { return o.ID == e.ID }); i >= 0 {
			b.poisoned[i] = e
		} else {
			b.poisoned = append(b.poisoned, e)
			b.checkTwice(e)
		}
	}
	if after {
		return errShaky
	}
	return nil
}

// checkTwice checks that no failure has two entries, whichever members had the message. Those of keys that wait are for a place each.
func (b *shaky) checkTwice(e driver.PoisonEntry) {
	for _, o := range b.poisoned {
		if o.ID != e.ID && o.Message.ID == e.Message.ID && o.Failure.Replays == e.Failure.Replays && !o.Waits && !e.Waits {
			b.w.fail("%s has two poison entries", e.Message.ID)
		}
	}
}

func (b *shaky) entries() []driver.PoisonEntry {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.poisoned)
}

func (b *shaky) List(context.Context) iter.Seq2[driver.PoisonEntry, error] {
	entries := b.entries()
	return func(yield func(driver.PoisonEntry, error) bool) {
		for _, e := range entries {
			if !yield(e, nil) {
				return
			}
		}
	}
}

func (b *shaky) Remove(_ context.Context, ids ...string) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.poisoned = slices.DeleteFunc(b.poisoned, func(e driver.PoisonEntry) bool { return slices.Contains(ids, e.ID) })
	return nil
}

// faults says whether a call fails, before or after it has taken effect. It takes its time.
func (w *world) faults() (before, after bool) {
	if w.quiet.Load() {
		return false, false
	}
	if w.chance(3) {
		time.Sleep(w.upTo(300 * time.Millisecond))
	}
	if !w.faulty.Load() {
		return false, false
	}
	return w.chance(12), w.chance(12)
}

// refusal is why a message is not parked.
func (w *world) refusal(id string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.plan.refuses:
		return nil
	case w.messages[id] != nil && w.messages[id].n == 3:
		return &bus.Error{Op: "park", Broker: "shaky", Err: bus.ErrTooLarge}
	case w.faulty.Load() && w.rng.IntN(4) == 0:
		return &bus.Error{Op: "park", Broker: "shaky", Err: errShaky, Retryable: true}
	}
	return nil
}
