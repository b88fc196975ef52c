package conformance

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var boundChecks = []check{
	{"bounds/in-flight", boundInFlight},
	{"bounds/bytes", boundBytes},
	{"bounds/receive", boundReceive},
}

// boundInFlight: never more messages are in flight than the bound, and all come in the end.
func boundInFlight(e *env) {
	b := e.bus()
	topic := e.name("bound")
	l := e.ledger()
	const bound = 20
	gate := make(chan struct{})
	var once sync.Once
	r := router.New(b, e.name("g"), router.Workers(64), router.InFlight(bound, 1<<20))
	r.HandleFunc(topic, l.handler(func(ctx context.Context, _ *bus.Message) error {
		select {
		case <-gate:
		case <-ctx.Done():
			return ctx.Err()
		}
		return nil
	}))
	e.run(r)
	e.cleanup = append(e.cleanup, func() { once.Do(func() { close(gate) }) })
	e.publish(b, topic, l.make(500, 0)...)
	least := bound / 2
	if e.capabilities(b).Serial {
		least = 1
	}
	e.wait("the handlers", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.now >= least
	})
	e.pause(200*time.Millisecond, "more would come now, if the bound were not kept")
	if n := r.Health().Routes[0].InFlight; n > bound {
		e.errorf("%d messages in flight, bound is %d", n, bound)
	}
	once.Do(func() { close(gate) })
	l.complete()
	l.exact()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.most > bound {
		e.errorf("%d messages were handled at once, bound is %d", l.most, bound)
	}
}

// boundBytes: the bound in bytes holds, except for one message.
func boundBytes(e *env) {
	b := e.bus()
	topic := e.name("bytes")
	l := e.ledger()
	const bound, size = 1 << 20, 200_000
	var mu sync.Mutex
	now, most := 0, 0
	r := router.New(b, e.name("g"), router.Workers(64), router.InFlight(1000, bound))
	r.HandleFunc(topic, l.handler(func(_ context.Context, m *bus.Message) error {
		mu.Lock()
		now += len(m.Payload)
		most = max(most, now)
		mu.Unlock()
		e.pause(10*time.Millisecond, "handling")
		mu.Lock()
		now -= len(m.Payload)
		mu.Unlock()
		return nil
	}))
	e.run(r)
	msgs := l.make(50, 0)
	for _, m := range msgs {
		m.Payload = make([]byte, size)
		e.publish(b, topic, m)
	}
	l.complete()
	l.exact()
	mu.Lock()
	defer mu.Unlock()
	if most > bound+size {
		e.errorf("%d bytes were in flight, bound is %d and one message", most, bound)
	}
}

// boundReceive: Receive keeps to the number and bytes it is given, and gives a large message alone.
// It keeps each lane's order, and owns the lanes of its deliveries.
func boundReceive(e *env) {
	b := e.bus()
	topic := e.name("receive")
	s, o := e.source(b, bus.Subscription{Topic: topic, Group: e.name("g")})
	var msgs []*bus.Message
	for i := range 40 {
		size := 1000
		if i%10 == 9 {
			size = 100_000
		}
		msgs = append(msgs, &bus.Message{Key: "k", Payload: make([]byte, size)})
	}
	e.publish(b, topic, msgs...)
	last := map[int32]int64{}
	for got := 0; got < len(msgs); {
		dst := make([]bus.Delivery, 10)
		n, err := s.Receive(e.ctx, dst[:7], 20_000)
		if err != nil {
			e.fatalf("receive: %v", err)
		}
		bytes := 0
		for i := range n {
			d := &dst[i]
			bytes += d.Size()
			if !o.owns(d.Token) {
				e.errorf("a delivery of lane %d, epoch %d, which was not assigned", d.Lane, d.Epoch)
			}
			if p, ok := last[d.Lane]; ok && d.Position <= p {
				e.errorf("lane %d: position %d came after %d", d.Lane, d.Position, p)
			}
			last[d.Lane] = d.Position
		}
		if n < 1 || n > 7 || n > 1 && bytes > 20_000 || dst[7].Message != nil {
			e.fatalf("receive gave %d messages of %d bytes, asked for 7 and 20,000", n, bytes)
		}
		got += n
		var tokens []bus.Token
		for i := range n {
			tokens = append(tokens, dst[i].Token)
		}
		if err := s.Settle(e.ctx, tokens); err != nil && !errors.Is(err, bus.ErrStale) {
			e.errorf("settle: %v", err)
		}
	}
}
