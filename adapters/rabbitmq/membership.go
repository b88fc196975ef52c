package rabbitmq

import (
	"context"
	"math/rand/v2"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// balanceInterval is how often a member compares its lanes with its share, when nothing gives cause to earlier.
const balanceInterval = 3 * time.Second

// membership is what makes a member count: a consumer of the group's members queue, of which the broker tells the
// number. The queue never holds a message, and goes with its last consumer.
type membership struct {
	source  *source
	session *session
	ch      *amqp.Channel
	members int       // at the last look
	surplus time.Time // since when this member has had more than its share; zero if it has not
}

// shareDelay is how long a member has had more than its share before it gives lanes up. A member whose connection ended is
// counted for a moment when its lanes have come to others already: they would hand them over to nobody.
const shareDelay = 250 * time.Millisecond

func (m *membership) join() error {
	ch, err := m.session.conn.Channel()
	if err != nil {
		return err
	}
	m.ch = ch
	name := membersName(m.source.group)
	args := amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeClassic} // a quorum queue counts its active consumer only
	if _, err := ch.QueueDeclare(name, true, true, false, false, args); err != nil {
		return err
	}
	_, err = ch.Consume(name, "member", true, false, false, false, nil)
	return err
}

func (m *membership) leave() {
	if m.ch != nil {
		_ = m.ch.Close()
	}
}

// keep balances until ctx or the session ends.
func (m *membership) keep(ctx context.Context) {
	tick := time.NewTicker(balanceInterval + rand.N(balanceInterval/4))
	defer tick.Stop()
	for n, ticks := 0, 0; ; {
		ticked := false
		select {
		case <-ctx.Done():
			return
		case <-m.session.done:
			return
		case <-tick.C:
			ticked = true
		case <-m.source.balance:
		}
		if err := m.share(); err != nil { // the channel was closed: somebody deleted the queue
			if !pause(ctx, backoff(n)) {
				return
			}
			n++
			m.leave()
			_ = m.join()
			continue
		}
		n = 0
		if !ticked {
			continue
		}
		if ticks++; ticks%watchTicks == 0 {
			m.watch()
		}
		if m.source.earliest.Load() {
			// What fails here is tried at the next tick.
			_, _ = call(ctx, m.session, func(ctx context.Context, t *topology) (struct{}, error) {
				return struct{}{}, m.source.d.sweep(ctx, t, m.source.sub.Topic)
			})
		}
	}
}

// watchTicks is after how many looks a member checks that its lanes deliver.
const watchTicks = 10

// watch probes the lanes that are idle.
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

// share gives up the lanes that this member has owned beyond its share for a while. When a member has left, it wakes the others' lanes:
// whoever is active there now, perhaps this one, has not been told.
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
	surplus := -((lanes + members - 1) / members)
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
	for i := lanes - 1; i >= 0 && surplus > 0; i-- {
		if l := m.source.lanes[i]; l.owned.Load() {
			l.giveUp()
			surplus--
		}
	}
	return nil
}

// rebalance looks at the shares now.
func (s *source) rebalance() {
	select {
	case s.balance <- struct{}{}:
	default:
	}
}
