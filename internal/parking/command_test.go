package parking

import (
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func TestCommandText(t *testing.T) {
	for text, want := range map[string]Command{ // as Kafka's driver writes them
		"new": {Kind: New}, "replace 55": {Replace, 55}, "withdraw 1796040000123457000": {Withdraw, 1796040000123457000},
	} {
		if got, ok := ParseCommand(text); !ok || got != want || want.String() != text {
			t.Errorf("%q is read as %v, %v, and written as %q", text, got, ok, want)
		}
	}
	for _, text := range []string{"", "new 5", "replace", "replace x", "withdraw ", "withdraw 5 6", "forget 5", " new", "replace 99999999999999999999"} {
		if c, ok := ParseCommand(text); ok {
			t.Errorf("%q is read as %v", text, c)
		}
	}
}

func TestCommandOf(t *testing.T) {
	parked := bus.Delivery{Token: bus.Token{Parked: true, Position: 55}}
	for _, c := range []struct {
		p    driver.Parking
		want Command
	}{
		{driver.Parking{}, Command{Kind: New}},
		{driver.Parking{Delivery: bus.Delivery{Token: bus.Token{Position: 9}}}, Command{Kind: New}},
		{driver.Parking{Delivery: parked}, Command{Replace, 55}},
		{driver.Parking{Delivery: parked, Withdraw: true}, Command{Withdraw, 55}},
	} {
		if got := CommandOf(&c.p); got != c.want {
			t.Errorf("%+v is %v, want %v", c.p, got, c.want)
		}
	}
}
