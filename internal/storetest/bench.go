package storetest

import (
	"fmt"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
)

// Bench measures a store in a bus: one caller appends to one stream, one event and ten at a time,
// and reads a stream of 100 events.
func Bench(b *testing.B, over *bus.Bus) {
	s, err := eventstore.Open(b.Context(), over, topic())
	if err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 10} {
		b.Run(fmt.Sprintf("Append%d", n), func(b *testing.B) {
			stream, version, all := topic(), int64(0), events(1, n)
			b.ReportAllocs()
			for b.Loop() {
				done, err := s.Append(b.Context(), stream, eventstore.At(version), all...)
				if err != nil {
					b.Fatal(err)
				}
				version = done.Version
			}
		})
	}
	b.Run("Read100", func(b *testing.B) {
		stream := topic()
		mustAppend(b, s, stream, eventstore.New, events(1, 100)...)
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for e, err := range s.Read(b.Context(), stream, 0) {
				if n++; err != nil || e.Stream != stream {
					b.Fatal(e, err)
				}
			}
			if n != 100 {
				b.Fatalf("%d events", n)
			}
		}
	})
}
