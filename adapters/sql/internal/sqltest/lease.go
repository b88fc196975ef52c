package sqltest

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// LeaseLost has a member lose its lease before it has committed its last messages, because the
// database lets nobody write. Its settled messages do not come again if no other member has taken
// its lanes meanwhile.
func LeaseLost(t *testing.T, db Database) {
	for name, next := range map[string]func(*testing.T, *bus.Bus, string, bus.Source) bus.Source{
		"same member": func(_ *testing.T, _ *bus.Bus, _ string, s bus.Source) bus.Source { return s },
		"next member": func(t *testing.T, b *bus.Bus, topic string, s bus.Source) bus.Source {
			Close(t, s)
			return Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
		},
	} {
		t.Run(name, func(t *testing.T) {
			topic, o := Topic(), NewObserver()
			b := db.Open(t, "lease=500ms", "commit=1s")
			s := Subscribe(t, b, topic, "g", bus.Earliest, o)
			o.Await(t, lanes)
			Publish(t, b, topic, Texts(numbers(50)...)...)
			ds := Receive(t, s, 50)
			end := db.holdWrites(t, fmt.Sprintf("member WHERE grp = %d", db.groupID(t, topic)))
			Settle(t, s, ds...)
			for timeout := time.After(patience); o.Count() > 0; {
				select {
				case <-o.Events:
				case <-timeout:
					t.Fatal("the lease is not lost")
				}
			}
			end()
			Nothing(t, b, topic, next(t, b, topic, s))
		})
	}
}

// holdWrites begins a transaction that lets nobody write the rows, and on SQLite nothing at all. It
// returns a function that ends the transaction.
func (db Database) holdWrites(t *testing.T, rows string) (end func()) {
	t.Helper()
	if !strings.HasPrefix(db.URL, "sqlite:") {
		return db.lock(t, rows)
	}
	c, err := db.DB.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	return func() {
		if _, err := c.ExecContext(context.WithoutCancel(t.Context()), "ROLLBACK"); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}
