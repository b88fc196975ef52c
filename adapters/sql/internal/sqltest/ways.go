package sqltest

import (
	"context"
	"database/sql"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/conformance"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// item is the type of the messages that package conformance sends in a way of settling.
type item struct{}

// ways has handlers settle in their own transactions, while they fail, wait, are replayed and
// change members.
func ways(t *testing.T, db Database) {
	users, err := db.Connect(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := users.Close(); err != nil {
			t.Error(err)
		}
	})
	conformance.RunWay(t, conformance.URL(brokertest.With(db.URL)), conformance.Way{
		Options: []router.Option{router.Guarantee(router.ExactlyOnce)},
		Handler: func(work conformance.Work) bus.Handler {
			return outbox.OnceInBus(outbox.SQL(users, nil), func(ctx context.Context, _ *sql.Tx, _ item) error {
				return work(ctx, bus.DeliveryFrom(ctx).Message)
			})
		},
	})
}
