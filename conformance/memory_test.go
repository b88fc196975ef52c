package conformance_test

import (
	"context"
	"testing"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/conformance"
)

func TestMemory(t *testing.T) {
	conformance.RunWith(t, conformance.URL("memory:conformance"), conformance.Options{RawPoison: putUnreadable})
}

// putUnreadable stores an entry such as drivers make of records that they cannot read. In memory
// there are no other records.
func putUnreadable(ctx context.Context, b *bus.Bus, group string, record []byte) error {
	s, err := driver.Of(b).Poison(ctx, group)
	if err != nil {
		return err
	}
	return s.Put(ctx, driver.PoisonEntry{
		ID: "record", Message: &bus.Message{Payload: record}, Group: group, Failure: bus.Failure{Class: driver.Unreadable, Text: "what is this"},
	})
}
