package main

import (
	"strings"
	"testing"

	"github.com/millrace-go/millrace/internal/brokertest"
)

// TestMigration: no order is lost on the way, and Kafka keeps each customer's in order.
func TestMigration(t *testing.T) {
	for _, name := range []string{"kafka", "rabbitmq"} {
		t.Run(name, func(t *testing.T) {
			url := brokertest.URL(t, name)
			var out strings.Builder
			kafkaURL, rabbitURL := url, ""
			if name == "rabbitmq" {
				kafkaURL, rabbitURL = "", url
			}
			if err := migrate(t.Context(), kafkaURL, rabbitURL, &out); err != nil || !strings.Contains(out.String(), "0 lost") {
				t.Errorf("%v\n%s", err, out.String())
			}
			t.Log(out.String())
		})
	}
	if err := migrate(t.Context(), "", "", nil); err == nil {
		t.Error("a migration of nothing succeeds")
	}
}

// TestLedgerNotices: a ledger that sees nothing proves nothing.
func TestLedgerNotices(t *testing.T) {
	a1, a2 := Order{1, "a", 1}, Order{2, "a", 2}
	for name, tc := range map[string]struct {
		published, handled []Order
		err                string
	}{
		"fine":      {[]Order{a1, a2}, []Order{a1, a1, a2}, ""},
		"lost":      {[]Order{a1, a2}, []Order{a1}, "lost orders: [2]"},
		"strange":   {[]Order{a1}, []Order{a1, a2}, "nobody published"},
		"overtaken": {[]Order{a1, a2}, []Order{a2, a1}, "out of order"},
	} {
		led := newLedger()
		for _, o := range tc.published {
			led.publish(o)
		}
		for _, o := range tc.handled {
			led.handle("x", o)
		}
		text, err := led.report(true)
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, %s", name, err, text)
		}
	}
}
