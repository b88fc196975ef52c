// Package account is the aggregate of tests: a bank account, whose money comes and goes, and never
// becomes less than nothing.
package account

import (
	"errors"
	"testing"

	"github.com/millrace-go/millrace/aggregate"
	"github.com/millrace-go/millrace/eventstore"
)

type (
	// Event is an event of an account.
	Event interface{ EventType() string }
	// Deposited says that money came.
	Deposited struct{ Cents int64 }
	// Withdrawn says that money went.
	Withdrawn struct{ Cents int64 }

	// State is the state of an account.
	State struct {
		Cents int64
		Moves []int64 // a reference, as in most states
	}

	// Decision is a rule on accounts.
	Decision = aggregate.Decision[State, Event]
	// Kind is a kind of accounts.
	Kind = aggregate.Kind[State, Event]
	// Repository has accounts.
	Repository = aggregate.Repository[State, Event]
)

var (
	// Events are the types of an account's events.
	Events = eventstore.TypesOf[Event](Deposited{}, Withdrawn{})
	// ErrTooMuch is the refusal of Withdraw.
	ErrTooMuch = errors.New("there is not as much")
)

// EventType implements Event.
func (Deposited) EventType() string { return "account.deposited.v1" }

// EventType implements Event.
func (Withdrawn) EventType() string { return "account.withdrawn.v1" }

// Apply changes the state as e says.
func (a *State) Apply(e Event) {
	switch e := e.(type) {
	case Deposited:
		a.Cents += e.Cents
		a.Moves = append(a.Moves, e.Cents)
	case Withdrawn:
		a.Cents -= e.Cents
		a.Moves = append(a.Moves, -e.Cents)
	}
}

// Define returns the kind "account".
func Define(opts ...aggregate.Option) *Kind {
	return aggregate.Define[State]("account", Events, opts...)
}

// Deposit brings money.
func Deposit(cents int64) Decision {
	return func(State) ([]Event, error) { return []Event{Deposited{cents}}, nil }
}

// Withdraw takes money if there is as much, and refuses with ErrTooMuch otherwise.
func Withdraw(cents int64) Decision {
	return func(a State) ([]Event, error) {
		if a.Cents < cents {
			return nil, ErrTooMuch
		}
		return []Event{Withdrawn{cents}}, nil
	}
}

// Check fails t if the stored account 7 has another amount or version.
func Check(t testing.TB, r *Repository, cents, version int64) {
	t.Helper()
	a, v, err := r.Load(t.Context(), "7")
	if err != nil || a.Cents != cents || v != version {
		t.Errorf("%d cents at version %d, %v, want %d at %d", a.Cents, v, err, cents, version)
	}
}
