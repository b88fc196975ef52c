package conformance_test

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// abilityDefects are defects of optional abilities.
var abilityDefects = []defect{
	{name: "transactions: outputs are published beside the settlement", make: func() *broken {
		var failed atomic.Bool
		return &broken{
			caps: claimTransactions,
			settle: func(s bus.Source, ctx context.Context, tokens []bus.Token) error {
				if !failed.Swap(true) {
					return errors.New("not now")
				}
				return s.Settle(ctx, tokens)
			},
		}
	}, noticed: []string{"transactions/exactly-once"}},
	{name: "abilities: sources hide what the driver claims", make: func() *broken {
		return &broken{source: func(s *brokenSource) bus.Source { return struct{ bus.Source }{s} }}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: the driver does not say that it parks", make: func() *broken {
		return &broken{caps: func(c bus.Capabilities) bus.Capabilities { c.Parking = false; return c }}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: the driver does not say that it has transactions", make: func() *broken {
		return &broken{source: func(s *brokenSource) bus.Source { return &transacting{s} }}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: nothing is parked", make: func() *broken {
		return &broken{park: func(driver.ParkingSource, context.Context, []driver.Parking) error { return nil }}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: outputs are forgotten", make: func() *broken {
		return &broken{caps: claimTransactions, source: func(s *brokenSource) bus.Source { return &settlesFirst{s, true} }}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: outputs are published whosever the message is", make: func() *broken {
		return &broken{caps: claimTransactions} // it publishes before it settles
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: Commit does not commit", make: func() *broken {
		return &broken{source: func(s *brokenSource) bus.Source { return &late{brokenSource: s} }}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: handled messages count as unfinished", make: func() *broken {
		var most atomic.Int64
		return &broken{lag: func(l driver.Lagger, ctx context.Context, topic, group string) (bus.Lag, error) {
			n, err := l.Lag(ctx, topic, group)
			most.Store(max(most.Load(), n.Messages))
			n.Messages = most.Load()
			return n, err
		}}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: a closed driver answers", make: func() *broken {
		return &broken{as: func(target any) bool {
			p, ok := target.(*driver.Pinger)
			if ok {
				*p = alwaysThere{}
			}
			return ok
		}}
	}, noticed: []string{"abilities/claimed"}},
	{name: "abilities: any transaction will do", make: func() *broken {
		return &broken{
			caps:   claimTransactions,
			source: func(s *brokenSource) bus.Source { return &joining{settlesFirst{brokenSource: s}} },
			as: func(target any) bool {
				h, ok := target.(*driver.TransactionHost)
				if ok {
					*h = anyHost{}
				}
				return ok
			},
		}
	}, noticed: []string{"abilities/claimed"}},
}

func claimTransactions(c bus.Capabilities) bus.Capabilities {
	c.Transactions = true
	return c
}

// settlesFirst settles messages, and publishes their outputs after that.
type settlesFirst struct {
	*brokenSource
	forgets bool // outputs
}

// SettleWith implements driver.TransactionalSource.
func (s *settlesFirst) SettleWith(ctx context.Context, ss []driver.Settlement) error {
	for _, one := range ss {
		if err := s.Settle(ctx, []bus.Token{one.Token}); err != nil || s.forgets {
			return err
		}
		for _, o := range one.Outputs {
			if err := s.b.Publish(ctx, o.Topic, []*bus.Message{o.Message}); err != nil {
				return err
			}
		}
	}
	return nil
}

// late settles when it is closed, and says nothing else.
type late struct {
	*brokenSource
	tokens []bus.Token
}

func (s *late) Settle(_ context.Context, tokens []bus.Token) error {
	s.tokens = append(s.tokens, tokens...)
	return nil
}

// Commit implements driver.Committer.
func (s *late) Commit(context.Context) error { return nil }

func (s *late) Close(ctx context.Context) error {
	_ = s.brokenSource.Settle(ctx, s.tokens)
	return s.brokenSource.Close(ctx)
}

// joining settles in whatever it is given.
type joining struct{ settlesFirst }

// SettleIn implements driver.JoiningSource.
func (s *joining) SettleIn(ctx context.Context, _ driver.Execer, tokens []bus.Token, _ []driver.Output) (end func(error) error, err error) {
	return func(err error) error { return err }, s.Settle(ctx, tokens)
}

// anyHost accepts every transaction.
type anyHost struct{}

// CheckTransaction implements driver.TransactionHost.
func (anyHost) CheckTransaction(context.Context, driver.Execer) error { return nil }

// alwaysThere is a broker that answers for ever.
type alwaysThere struct{}

// Ping implements driver.Pinger.
func (alwaysThere) Ping(context.Context) error { return nil }
