package bus

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// NewID returns a new message id: a UUID of version 7 (RFC 9562). The text order of ids is the
// order in which this process made them. It is safe for concurrent use.
func NewID() string { return newID(time.Now()) }

// lastTick is the newest tick in use (milliseconds and 12 bits of fraction).
var lastTick atomic.Uint64

// newID is NewID at a time that the caller already knows: reading the clock is half of the cost.
func newID(now time.Time) string {
	ns := uint64(now.UnixNano())
	ms := ns / 1e6
	tick := ms<<12 | (ns-ms*1e6)*4096/1e6
	// Each id takes a tick of its own, so ids of one process stay in order however many are made at
	// once.
	for {
		last := lastTick.Load()
		tick = max(tick, last+1)
		if lastTick.CompareAndSwap(last, tick) {
			break
		}
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], tick>>12<<16|7<<12|tick&0xfff)
	binary.BigEndian.PutUint64(b[8:], 2<<62|rand.Uint64()>>2) // seeded from the operating system; an id is no secret
	return formatID(b)
}

// idPlaces are where the digits of each byte are in an id's text.
var idPlaces = [16]uint8{0, 2, 4, 6, 9, 11, 14, 16, 19, 21, 24, 26, 28, 30, 32, 34}

func formatID(id [16]byte) string {
	const digits = "0123456789abcdef"
	s := [36]byte{8: '-', 13: '-', 18: '-', 23: '-'}
	for i, place := range idPlaces {
		s[place], s[place+1] = digits[id[i]>>4], digits[id[i]&15]
	}
	return string(s[:])
}
