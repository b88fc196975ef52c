package conformance

import (
	"context"
	"errors"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var transactionChecks = []check{
	{"transactions/exactly-once", transactionsExactlyOnce},
}

// transactionsExactlyOnce: each message's outputs are published once, in the order of its key. This
// holds although handlers fail after they have emitted, and members come and go.
func transactionsExactlyOnce(e *env) {
	const n, keys = 2000, 100
	b := e.bus()
	if !e.capabilities(b).Transactions {
		e.lacking("publishes what handlers emit beside the settlement, not in one transaction with it")
	}
	in, out, group := e.name("in"), e.name("out"), e.name("g")
	l := e.ledger() // of messages published to in, as they come out of out
	outputs := router.New(b, e.name("outputs"))
	outputs.HandleFunc(out, l.handler(nil))
	e.run(outputs)
	member := func() *running {
		r := router.New(e.bus(), group, router.Guarantee(router.ExactlyOnce), router.Policy{Retry: router.Schedule{0, 0, 0}})
		r.HandleFunc(in, func(ctx context.Context, m *bus.Message) error {
			if err := bus.Emit(ctx, out, m); err != nil {
				return err
			}
			if m.ID[len(m.ID)-1] < '4' && bus.DeliveryFrom(ctx).Attempt == 1 { // the end of an id is random
				return errors.New("the first try fails, after it has emitted")
			}
			return nil
		})
		return e.run(r)
	}
	first := member()
	e.publish(b, in, l.make(n, keys)...)
	l.waitFor(func() int { return n / 4 })
	second := member()
	e.publish(b, in, l.make(n, keys)...)
	l.waitFor(func() int { return n })
	first.drain()
	l.complete()
	second.drain()
	member()
	e.publish(b, in, l.each(0, keys)...) // behind possible repeats
	l.complete()
	l.exact()
}
