package conformance_test

import (
	"context"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// broken is the memory driver with something wrong. A hook that is nil leaves its part as it is.
type broken struct {
	driver.Driver
	publish   func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error
	subscribe func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error)
	receive   func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error)
	settle    func(s bus.Source, ctx context.Context, tokens []bus.Token) error
	park      func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error
	inject    func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error
	close     func(s bus.Source, ctx context.Context) error
	source    func(s *brokenSource) bus.Source // is given to subscribers
	lag       func(l driver.Lagger, ctx context.Context, topic, group string) (bus.Lag, error)
	as        func(target any) bool
	poison    func(s driver.PoisonStore) driver.PoisonStore
	caps      func(c bus.Capabilities) bus.Capabilities
	room      int // messages that may be parked in a lane, 0: any number
	shut      func(d driver.Driver, ctx context.Context) error
}

func (b *broken) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if b.publish != nil {
		return b.publish(b.Driver, ctx, topic, msgs)
	}
	return b.Driver.Publish(ctx, topic, msgs)
}

func (b *broken) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	subscribe := func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
		return d.Subscribe(ctx, s, o)
	}
	if b.subscribe != nil {
		subscribe = b.subscribe
	}
	src, err := subscribe(b.Driver, ctx, s, o)
	if err != nil {
		return nil, err
	}
	base := &brokenSource{Source: src, b: b}
	switch {
	case b.source != nil:
		return b.source(base), nil
	case b.Capabilities().Transactions:
		return &transacting{base}, nil
	}
	return base, nil
}

// Lag implements driver.Lagger.
func (b *broken) Lag(ctx context.Context, topic, group string) (bus.Lag, error) {
	l := b.Driver.(driver.Lagger)
	if b.lag != nil {
		return b.lag(l, ctx, topic, group)
	}
	return l.Lag(ctx, topic, group)
}

// As finds abilities that only some of the drivers have.
func (b *broken) As(target any) bool { return b.as != nil && b.as(target) }

func (b *broken) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := b.Driver.Poison(ctx, group)
	if err == nil && b.poison != nil {
		s = b.poison(s)
	}
	return s, err
}

func (b *broken) Inject(ctx context.Context, topic, group string, ps []driver.Parking) error {
	d := b.Driver.(driver.Injector)
	if b.inject != nil {
		return b.inject(d, ctx, topic, group, ps)
	}
	return d.Inject(ctx, topic, group, ps)
}

func (b *broken) Capabilities() bus.Capabilities {
	if b.caps != nil {
		return b.caps(b.Driver.Capabilities())
	}
	return b.Driver.Capabilities()
}

func (b *broken) Close(ctx context.Context) error {
	if b.shut != nil {
		return b.shut(b.Driver, ctx)
	}
	return b.Driver.Close(ctx)
}

type brokenSource struct {
	bus.Source
	b *broken
}

func (s *brokenSource) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	if s.b.receive != nil {
		return s.b.receive(s.Source, ctx, dst, maxBytes)
	}
	return s.Source.Receive(ctx, dst, maxBytes)
}

func (s *brokenSource) Settle(ctx context.Context, tokens []bus.Token) error {
	if s.b.settle != nil {
		return s.b.settle(s.Source, ctx, tokens)
	}
	return s.Source.Settle(ctx, tokens)
}

func (s *brokenSource) Park(ctx context.Context, ps []driver.Parking) error {
	p := s.Source.(driver.ParkingSource)
	if s.b.park != nil {
		return s.b.park(p, ctx, ps)
	}
	return p.Park(ctx, ps)
}

func (s *brokenSource) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	return s.Source.(driver.ParkingSource).Fetch(ctx, tokens, dst)
}

// transacting is the source of a driver that claims transactions.
type transacting struct{ *brokenSource }

// SettleWith is no transaction: a failure after the outputs are published repeats them.
func (s *transacting) SettleWith(ctx context.Context, ss []driver.Settlement) error {
	var tokens []bus.Token
	for _, one := range ss {
		for _, o := range one.Outputs {
			if err := s.b.Driver.Publish(ctx, o.Topic, []*bus.Message{o.Message}); err != nil {
				return err
			}
		}
		tokens = append(tokens, one.Token)
	}
	return s.Settle(ctx, tokens)
}

func (s *brokenSource) Close(ctx context.Context) error {
	if s.b.close != nil {
		return s.b.close(s.Source, ctx)
	}
	return s.Source.Close(ctx)
}

// edit is a driver that changes messages on their way in.
func edit(f func(m *bus.Message)) *broken {
	return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
		changed := make([]*bus.Message, len(msgs))
		for i, m := range msgs {
			changed[i] = m.Clone()
			f(changed[i])
		}
		return d.Publish(ctx, topic, changed)
	}}
}

// filter is a driver that changes batches on their way out; the hook returns how many deliveries
// are left.
func filter(f func(dst []bus.Delivery) int) *broken {
	return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
		for {
			n, err := s.Receive(ctx, dst, maxBytes)
			if n = f(dst[:n]); n > 0 || err != nil {
				return n, err
			}
		}
	}}
}
