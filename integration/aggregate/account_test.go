package aggregate_test

import (
	"errors"
	"testing"

	"github.com/millrace-go/millrace/aggregate"
	"github.com/millrace-go/millrace/eventstore"
)

// An account: money comes and goes, and never becomes less than nothing.
type (
	accountEvent interface{ EventType() string }
	deposited    struct{ Cents int64 }
	withdrawn    struct{ Cents int64 }

	account struct {
		Cents int64
		Moves []int64 // a reference, as in most states
	}
)

func (deposited) EventType() string { return "account.deposited.v1" }
func (withdrawn) EventType() string { return "account.withdrawn.v1" }

func (a *account) Apply(e accountEvent) {
	switch e := e.(type) {
	case deposited:
		a.Cents += e.Cents
		a.Moves = append(a.Moves, e.Cents)
	case withdrawn:
		a.Cents -= e.Cents
		a.Moves = append(a.Moves, -e.Cents)
	}
}

var (
	accountEvents = eventstore.TypesOf[accountEvent](deposited{}, withdrawn{})
	errTooMuch    = errors.New("there is not as much")
)

type decision = aggregate.Decision[account, accountEvent]

func deposit(cents int64) decision {
	return func(account) ([]accountEvent, error) { return []accountEvent{deposited{cents}}, nil }
}

func withdraw(cents int64) decision {
	return func(a account) ([]accountEvent, error) {
		if a.Cents < cents {
			return nil, errTooMuch
		}
		return []accountEvent{withdrawn{cents}}, nil
	}
}

func define(opts ...aggregate.Option) *aggregate.Kind[account, accountEvent] {
	return aggregate.Define[account]("account", accountEvents, opts...)
}

type repository = aggregate.Repository[account, accountEvent]

// want checks the stored events of account 7.
func want(t testing.TB, r *repository, cents, version int64) {
	t.Helper()
	a, v, err := r.Load(t.Context(), "7")
	if err != nil || a.Cents != cents || v != version {
		t.Errorf("%d cents at version %d, %v, want %d at %d", a.Cents, v, err, cents, version)
	}
}
