package main

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/csv"
	"fmt"
	"strconv"
	"strings"
)

//go:embed cdnow-orders.csv.gz
var orderFile []byte

// OrderPlaced is the event that the shop publishes.
type OrderPlaced struct {
	Number   int    // of the order, from 0 in the file's order
	Customer string // also the key: a customer's orders are handled in order
	Nth      int    // of the customer's orders, from 1: so that a handler can tell whether order was kept
	Date     string // 1997-01-31
	CDs      int
	Cents    int64
}

// EventType implements bus.Typer.
func (OrderPlaced) EventType() string { return "shop.order.placed" }

// EventKey implements bus.Keyer.
func (o OrderPlaced) EventKey() string { return o.Customer }

// PaymentRequested is the event that billing emits for each order.
type PaymentRequested struct {
	Order    int
	Customer string
	Cents    int64
}

// EventType implements bus.Typer.
func (PaymentRequested) EventType() string { return "shop.payment.requested" }

// EventKey implements bus.Keyer.
func (p PaymentRequested) EventKey() string { return p.Customer }

// loadOrders reads the first n orders; n = 0 reads all.
func loadOrders(n int) ([]OrderPlaced, error) {
	unzipped, err := gzip.NewReader(bytes.NewReader(orderFile))
	if err != nil {
		return nil, err
	}
	rows, err := csv.NewReader(unzipped).ReadAll()
	if err != nil {
		return nil, err
	}
	rows = rows[1:] // the header
	if n == 0 {
		n = len(rows)
	}
	if n > len(rows) {
		return nil, fmt.Errorf("there are %d orders, not %d", len(rows), n)
	}
	orders := make([]OrderPlaced, n)
	nth := map[string]int{}
	for i, row := range rows[:n] {
		customer := row[0]
		nth[customer]++
		cds, err := strconv.Atoi(row[2])
		if err != nil {
			return nil, fmt.Errorf("order %d: %w", i, err)
		}
		cents, err := parseCents(row[3])
		if err != nil {
			return nil, fmt.Errorf("order %d: %w", i, err)
		}
		orders[i] = OrderPlaced{Number: i, Customer: customer, Nth: nth[customer], Date: row[1], CDs: cds, Cents: cents}
	}
	return orders, nil
}

// parseCents reads dollars exactly; floating point would not reconcile.
func parseCents(dollars string) (int64, error) {
	whole, part, _ := strings.Cut(dollars, ".")
	return strconv.ParseInt(whole+(part + "00")[:2], 10, 64)
}

// formatDollars is the reverse of parseCents.
func formatDollars(cents int64) string { return fmt.Sprintf("%d.%02d", cents/100, cents%100) }
