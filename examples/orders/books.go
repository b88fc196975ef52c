package main

import (
	"context"
	"fmt"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// Books holds the totals of the services. Deliveries may repeat (at least once), so each book knows
// which orders it has: a repeat changes nothing.
type Books struct {
	mu sync.Mutex

	Paid      Seen // payments that arrived
	PaidCents int64

	Customers map[string]*Account
	Loyal     int      // orders that loyalty has counted
	Broken    []string // where a customer's order was not kept

	Sold   Seen
	Months map[string]*Month
}

// Account is a customer's standing.
type Account struct {
	Orders, CDs int
	Cents       int64
}

// Month is a month's sales.
type Month struct {
	Orders, CDs int
	Cents       int64
}

func newBooks() *Books {
	return &Books{Paid: Seen{}, Customers: map[string]*Account{}, Sold: Seen{}, Months: map[string]*Month{}}
}

// Seen is a set of order numbers, as bits.
type Seen map[int]uint64

// add returns false if n was in the set.
func (s Seen) add(n int) bool {
	bit := uint64(1) << (n % 64)
	if s[n/64]&bit != 0 {
		return false
	}
	s[n/64] |= bit
	return true
}

func (s Seen) count() int {
	n := 0
	for _, word := range s {
		for ; word != 0; word &= word - 1 {
			n++
		}
	}
	return n
}

// bind binds the services to the run's topics, each in a group of its own.
func (b *Books) bind(r *router.Router, orders, payments string, refusing *refusal) {
	router.On(r.Group("billing"), orders, func(ctx context.Context, o OrderPlaced) error {
		// Emitted with the handler's success, under an id that a repeat has too.
		return bus.Emit(ctx, payments, PaymentRequested{o.Number, o.Customer, o.Cents}, bus.WithID(fmt.Sprint("payment-", o.Number)))
	})
	router.On(r.Group("bank"), payments, b.pay)
	router.On(r.Group("loyalty", refusing.options()...), orders, refusing.around(b.credit), router.Name("loyalty"))
	router.On(r.Group("sales"), orders, b.sell)
}

func (b *Books) pay(_ context.Context, p PaymentRequested) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.Paid.add(p.Order) {
		b.PaidCents += p.Cents
	}
	return nil
}

// credit adds an order to its customer's account, and notices when it is not the next one.
func (b *Books) credit(_ context.Context, o OrderPlaced) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	a := b.Customers[o.Customer]
	if a == nil {
		a = &Account{}
		b.Customers[o.Customer] = a
	}
	if o.Nth <= a.Orders {
		return nil // a repeat
	}
	if o.Nth != a.Orders+1 && len(b.Broken) < 10 {
		b.Broken = append(b.Broken, fmt.Sprintf("customer %s: order %d came after order %d", o.Customer, o.Nth, a.Orders))
	}
	a.Orders = o.Nth
	a.CDs += o.CDs
	a.Cents += o.Cents
	b.Loyal++
	return nil
}

func (b *Books) sell(_ context.Context, o OrderPlaced) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.Sold.add(o.Number) {
		return nil
	}
	m := b.Months[o.Date[:7]]
	if m == nil {
		m = &Month{}
		b.Months[o.Date[:7]] = m
	}
	m.Orders++
	m.CDs += o.CDs
	m.Cents += o.Cents
	return nil
}

// handled counts each service's finished orders; the run is complete when each count is the number
// of orders.
func (b *Books) handled() (paid, loyal, sold int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Paid.count(), b.Loyal, b.Sold.count()
}
