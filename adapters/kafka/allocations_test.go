package kafka

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// TestAllocations holds encoding to slabs for a call, and decoding to slabs for 64 messages.
func TestAllocations(t *testing.T) {
	const n = 640
	messages := make([]*bus.Message, n)
	now := time.Now()
	for i := range messages {
		messages[i] = &bus.Message{
			ID: bus.NewID(), Source: "/test", Type: "order.placed", Time: now, ContentType: "application/json",
			Key: fmt.Sprint("customer-", i), Payload: make([]byte, 100), Headers: bus.Headers{{Name: "correlationid", Value: "7"}},
		}
	}
	var records []kgo.Record
	encoding := testing.AllocsPerRun(20, func() { records, _ = encode("t", messages) })
	if most := 4.0; encoding > most { // three slabs; one may grow
		t.Errorf("encoding %d messages made %v allocations: want at most %v", n, encoding, most)
	}
	batch := make([]accepted, n)
	for i := range records {
		batch[i].record = &records[i]
	}
	var d decoder
	decoding := testing.AllocsPerRun(20, func() {
		for i, reserved := 0, 0; i < n; i++ {
			if reserved == 0 {
				reserved = d.reserve(batch[i:])
			}
			reserved--
			d.message(batch[i].record)
		}
	})
	if most := float64(n + 3*n/16); decoding > most { // the headers of each message; slabs of 16 KiB
		t.Errorf("decoding %d messages made %v allocations: want at most %v", n, decoding, most)
	}
	t.Logf("%d messages: encoding %v, decoding %v", n, encoding, decoding)
}
