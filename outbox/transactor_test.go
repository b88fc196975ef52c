package outbox_test

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/leaktest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/outbox"
)

// The tests that need a database are in integration/outbox.
func TestMain(m *testing.M) { leaktest.Main(testlog.Strict(m)) }

type tenantKey struct{}

// nowhere is a transaction that takes everything.
type nowhere struct{}

func (nowhere) ExecContext(context.Context, string, ...any) (sql.Result, error) { return nil, nil }

// TestTransactorHasTheValuesOfTheContext: so it is also for telling relays of a commit. Relays are
// told of nothing if nothing was written.
func TestTransactorHasTheValuesOfTheContext(t *testing.T) {
	for _, writes := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			o, err := outbox.New(outbox.Postgres, outbox.Config{})
			if err != nil {
				t.Fatal(err)
			}
			var tenants []any
			begin := func(ctx context.Context, f func(nowhere, outbox.Execer) error) error {
				tenants = append(tenants, ctx.Value(tenantKey{}))
				return errors.Join(f(nowhere{}, nowhere{}), ctx.Err())
			}
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), tenantKey{}, "acme"))
			err = outbox.Do(ctx, o, begin, func(_ nowhere, p bus.Publisher) error {
				if !writes {
					return nil
				}
				return p.Publish(ctx, "t", "payload")
			})
			cancel()
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second) // of the bubble: the outbox is done with it by then
			synctest.Wait()
			want := []any{"acme"}
			if writes {
				want = []any{"acme", "acme"}
			}
			if !slices.Equal(tenants, want) {
				t.Errorf("writes %v: %v", writes, tenants)
			}
		})
	}
}
