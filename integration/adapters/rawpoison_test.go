package all_test

import (
	"context"
	"database/sql"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// rawPoison is the form of conformance.Options.RawPoison.
type rawPoison func(ctx context.Context, b *bus.Bus, group string, record []byte) error

// rawKafka produces to the group's poison topic.
func rawKafka(ctx context.Context, b *bus.Bus, group string, record []byte) error {
	client, _ := bus.As[*kgo.Client](b)
	return client.ProduceSync(ctx, &kgo.Record{Topic: "millrace.poison." + group, Key: []byte("raw"), Value: record}).FirstErr()
}

// rawRow inserts a row into a poison table.
func rawRow(t *testing.T, driver, dsn, insert string) rawPoison {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return func(ctx context.Context, _ *bus.Bus, group string, record []byte) error {
		_, err := db.ExecContext(ctx, insert, group, string(record))
		return err
	}
}
