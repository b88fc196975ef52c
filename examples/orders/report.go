package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
)

// tiers of the loyalty programme, by the amount a customer has spent.
var tiers = []struct {
	name string
	from int64 // cents
}{{"platinum", 100_000}, {"gold", 50_000}, {"silver", 10_000}, {"bronze", 0}}

// report prints the services' totals.
func (b *Books) report(w io.Writer, orders []OrderPlaced) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var cds int
	var cents int64
	fmt.Fprintf(w, "Orders %s to %s\n\n%-10s %8s %8s %14s\n", orders[0].Date, orders[len(orders)-1].Date, "month", "orders", "CDs", "dollars")
	for _, name := range slices.Sorted(maps.Keys(b.Months)) {
		m := b.Months[name]
		cds += m.CDs
		cents += m.Cents
		fmt.Fprintf(w, "%-10s %8d %8d %14s\n", name, m.Orders, m.CDs, formatDollars(m.Cents))
	}
	fmt.Fprintf(w, "%-10s %8d %8d %14s\n\n", "all", b.Sold.count(), cds, formatDollars(cents))
	fmt.Fprintf(w, "%-10s %8s %14s\n", "tier", "members", "dollars")
	members, spent := map[string]int{}, map[string]int64{}
	for _, a := range b.Customers {
		name := tierOf(a.Cents)
		members[name]++
		spent[name] += a.Cents
	}
	for _, t := range tiers {
		fmt.Fprintf(w, "%-10s %8d %14s\n", t.name, members[t.name], formatDollars(spent[t.name]))
	}
	busiest := slices.MinFunc(slices.Collect(maps.Keys(b.Customers)), func(x, y string) int {
		return cmp.Or(cmp.Compare(b.Customers[y].Orders, b.Customers[x].Orders), cmp.Compare(x, y))
	})
	fmt.Fprintf(w, "\n%d customers; the busiest is %s with %d orders\n", len(b.Customers), busiest, b.Customers[busiest].Orders)
	fmt.Fprintf(w, "%d payments of %s dollars\n", b.Paid.count(), formatDollars(b.PaidCents))
}

func tierOf(cents int64) string {
	for _, t := range tiers {
		if cents >= t.from {
			return t.name
		}
	}
	return tiers[len(tiers)-1].name
}

// Known totals of the whole file.
const (
	allOrders    = 69_659
	allCustomers = 23_570
	allCDs       = 167_881
	allCents     = 250_031_563
)

// differences compares the books with the file, and the file with its known totals.
func (b *Books) differences(orders []OrderPlaced) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var cents int64
	var cds int
	customers := map[string]bool{}
	for _, o := range orders {
		cents += o.Cents
		cds += o.CDs
		customers[o.Customer] = true
	}
	var loyal, sold Month
	for _, a := range b.Customers {
		loyal.Orders, loyal.CDs, loyal.Cents = loyal.Orders+a.Orders, loyal.CDs+a.CDs, loyal.Cents+a.Cents
	}
	for _, m := range b.Months {
		sold.Orders, sold.CDs, sold.Cents = sold.Orders+m.Orders, sold.CDs+m.CDs, sold.Cents+m.Cents
	}
	diffs := slices.Clone(b.Broken)
	equal := func(what string, got, want int64) {
		if got != want {
			diffs = append(diffs, fmt.Sprintf("%s: %d, want %d", what, got, want))
		}
	}
	equal("payments", int64(b.Paid.count()), int64(len(orders)))
	equal("cents paid", b.PaidCents, cents)
	equal("orders in loyalty", int64(loyal.Orders), int64(len(orders)))
	equal("CDs in loyalty", int64(loyal.CDs), int64(cds))
	equal("cents in loyalty", loyal.Cents, cents)
	equal("customers", int64(len(b.Customers)), int64(len(customers)))
	equal("orders in sales", int64(sold.Orders), int64(len(orders)))
	equal("CDs in sales", int64(sold.CDs), int64(cds))
	equal("cents in sales", sold.Cents, cents)
	if len(orders) == allOrders {
		equal("customers in the file", int64(len(customers)), allCustomers)
		equal("CDs in the file", int64(cds), allCDs)
		equal("cents in the file", cents, allCents)
	}
	return diffs
}
