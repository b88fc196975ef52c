package rabbitmq

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/internal/backoff"
)

// balanceInterval is how often a member compares its lanes with its share, unless there is cause to
// do so earlier.
const balanceInterval = 3 * time.Second

// membership makes a member count: it is a consumer of the group's members queue, and the broker
// tells the number of that queue's consumers. The queue never holds a message, and goes with its
// last consumer.
//
// The queue is a classic queue, on one node. While that node is down, the members are not counted:
// each keeps the lanes that it has or gets.
type membership struct {
	source  *source
	session *amqplink.Session
	ch      *amqp.Channel // nil while this member does not count
	members int           // at the last look
	surplus time.Time     // since when this member has had more than its share; zero if it has not
}

// shareDelay is how long a member must have more than its share before it gives lanes up. The
// broker counts a member with a dead connection a little too long, when others already have its
// lanes: without this delay they would give lanes to nobody.
const shareDelay = 250 * time.Millisecond

func (m *membership) join() error {
	ch, err := m.session.Conn.Channel()
	if err != nil {
		return err
	}
	name := membersName(m.source.group)
	args := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic} // a quorum queue counts its active consumer only
	if _, err := ch.QueueDeclare(name, true, true, false, false, args); err != nil {
		return err
	}
	if _, err = ch.Consume(name, "member", true, false, false, false, nil); err == nil {
		m.ch = ch
	}
	return err
}

func (m *membership) leave() {
	if m.ch != nil {
		_ = m.ch.Close() // if it fails, the session has ended
		m.ch = nil
	}
}

// keep balances until ctx or the session ends.
func (m *membership) keep(ctx context.Context) {
	tick := time.NewTicker(balanceInterval + rand.N(balanceInterval/4))
	defer tick.Stop()
	var again <-chan time.Time
	for n, ticks := 0, 0; ; {
		if err := m.look(); err != nil {
			m.leave()
			m.source.shares(0, 0)
			if ctx.Err() == nil && !m.session.Conn.IsClosed() {
				m.source.troubled(counting, err)
			}
			again = time.After(backoff.Pause(n + 1))
			n++
		} else {
			m.source.healed(counting)
			again, n = nil, 0
		}
		select {
		case <-ctx.Done():
			return
		case <-m.session.Done:
			return
		case <-m.source.balance:
		case <-again:
		case <-tick.C:
			if ticks++; ticks%watchTicks == 0 {
				m.watch()
			}
			m.repair(ctx)
		}
	}
}

// look compares this member's lanes with its share. It joins first, if this member does not count.
func (m *membership) look() error {
	if m.ch == nil {
		if err := m.join(); err != nil {
			return err
		}
	}
	return m.share()
}

// repair attaches the group again, should somebody have deleted an exchange, and looks for kept
// messages.
func (m *membership) repair(ctx context.Context) {
	s := m.source
	_, err := call(ctx, m.session, func(ctx context.Context, t *topology) (struct{}, error) {
		return struct{}{}, t.attach(s.sub.Topic, s.group)
	})
	if amqplink.HasCode(err, amqp.NotFound) {
		s.troubled(setup, err)
		err = s.prepare(m.session)
	}
	if err != nil {
		if ctx.Err() == nil {
			s.troubled(setup, err)
		}
		return
	}
	s.healed(setup)
	if !s.earliest.Load() {
		return
	}
	_, err = call(ctx, m.session, func(ctx context.Context, t *topology) (struct{}, error) {
		return struct{}{}, s.d.sweep(ctx, t, s.sub.Topic)
	})
	if err == nil {
		s.healed(kept)
	} else if ctx.Err() == nil {
		s.troubled(kept, err) // and tried at the next tick
	}
}

// watchTicks is after how many looks a member checks that its lanes deliver.
const watchTicks = 10

// watch probes the lanes to which nothing comes.
func (m *membership) watch() {
	s := m.source
	for _, l := range s.lanes {
		o := l.current.Load()
		if o == nil || !l.owned.Load() || !o.check() {
			continue
		}
		s.workers.Go(func() {
			if s.d.pub.wake(s.ctx, l.name()) == nil {
				o.probe()
			}
		})
	}
}

// share gives up the lanes that this member has owned beyond its share for a while. When a member
// has left, share wakes the others' lanes: the consumer that is active there now, perhaps this
// member's, has not been told.
func (m *membership) share() error {
	q, err := m.ch.QueueDeclarePassive(membersName(m.source.group), true, true, false, false, nil)
	if err != nil {
		return err
	}
	lanes, members := len(m.source.lanes), max(1, q.Consumers)
	if members < m.members {
		for _, l := range m.source.lanes {
			if !l.owned.Load() {
				l.wake()
			}
		}
	}
	m.members = members
	share := (lanes + members - 1) / members
	m.source.shares(share, members)
	surplus := -share
	for _, l := range m.source.lanes {
		if l.owned.Load() {
			surplus++
		}
	}
	if surplus <= 0 {
		m.surplus = time.Time{}
		return nil
	}
	if m.surplus.IsZero() {
		m.surplus = time.Now()
		time.AfterFunc(shareDelay, m.source.rebalance)
	}
	if time.Since(m.surplus) < shareDelay {
		return nil
	}
	owned := slices.DeleteFunc(slices.Clone(m.source.lanes), func(l *lane) bool { return !l.owned.Load() })
	slices.SortStableFunc(owned, func(a, b *lane) int { return cmp.Compare(a.unsettled(), b.unsettled()) }) // idle ones first
	for _, l := range owned[:min(surplus, len(owned))] {
		l.giveUp()
	}
	return nil
}

// shares notes how many lanes a member may have. 0 is any number.
func (s *source) shares(share, members int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.share, s.members = share, members
}

// claim says whether this member takes a lane that has come to it. A member that has its share lets
// the lane go to the next in line, before any of its messages is handled: when a member gives lanes
// up, the broker gives them to the next in line. A lane that has come by all members stays.
func (s *source) claim(l *lane) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.share > 0 && s.claims >= s.share && l.passed < s.members {
		l.passed++
		return false
	}
	l.passed = 0
	s.claims++
	return true
}

func (s *source) unclaim() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.claims--
}

// rebalance looks at the shares now.
func (s *source) rebalance() {
	select {
	case s.balance <- struct{}{}:
	default:
	}
}
