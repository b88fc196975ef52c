package bus

import (
	"encoding/hex"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// NewID returns a new message id: a UUID of version 7 (RFC 9562), whose text order is the order in which this
// process made them. Safe for concurrent use.
func NewID() string { return newID(time.Now()) }

// lastTick is the newest tick (milliseconds and 12 bits of fraction) that was given out.
var lastTick atomic.Uint64

// newID is NewID at a time that the caller already knows: reading the clock is half of the cost.
func newID(now time.Time) string {
	ns := uint64(now.UnixNano())
	ms := ns / 1e6
	tick := ms<<12 | (ns-ms*1e6)*4096/1e6
	// Each id takes a tick of its own, so ids of one process stay in order however many are made at once.
	for {
		last := lastTick.Load()
		tick = max(tick, last+1)
		if lastTick.CompareAndSwap(last, tick) {
			break
		}
	}
	random := rand.Uint64() // seeded from the operating system; an id is no secret
	var b [16]byte
	b[0], b[1], b[2] = byte(tick>>52), byte(tick>>44), byte(tick>>36)
	b[3], b[4], b[5] = byte(tick>>28), byte(tick>>20), byte(tick>>12)
	b[6], b[7] = 0x70|byte(tick>>8)&0x0f, byte(tick)
	b[8] = 0x80 | byte(random>>56)&0x3f
	for i := 9; i < 16; i++ {
		b[i] = byte(random >> (8 * (15 - i)))
	}
	var s [36]byte
	hex.Encode(s[0:8], b[0:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:36], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
