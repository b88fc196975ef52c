package main

import (
	"crypto/rand"
	"encoding/binary"
	"strconv"
	"sync/atomic"
)

// load is the messages that a round publishes: n messages numbered from first on, from so many
// callers at once, so many a call.
type load struct {
	first, n         int
	callers, perCall int
	size             int // bytes of a payload
	keys             int // how many different ones
}

// item is one message of a load.
type item struct {
	key     string
	payload []byte
}

// one is a load of a single message.
func (l load) one(number int) load {
	l.first, l.n, l.callers, l.perCall = number, 1, 1, 1
	return l
}

// slabSize is how much memory payloads share, so that the benchmark's own allocations hardly show.
const slabSize = 64 << 10

// send calls publish with the messages of each call, from the callers' goroutines. The slice is the
// caller's own until the next call, the payloads are for keeps.
func (l load) send(publish func(items []item) error) error {
	names := keyNames(l.keys)
	var next atomic.Int64
	errs := make(chan error, l.callers)
	for range l.callers {
		go func() {
			var slab []byte
			items := make([]item, 0, l.perCall)
			for {
				at := int(next.Add(int64(l.perCall))) - l.perCall
				if at >= l.n {
					errs <- nil
					return
				}
				items = items[:0]
				for i := at; i < min(at+l.perCall, l.n); i++ {
					if len(slab) < l.size {
						slab = make([]byte, max(min(slabSize, l.n*l.size), l.size))
					}
					number := l.first + i
					items = append(items, item{names[number%len(names)], fillPayload(slab[:l.size:l.size], number)})
					slab = slab[l.size:]
				}
				if err := publish(items); err != nil {
					errs <- err
					return
				}
			}
		}()
	}
	var err error
	for range l.callers {
		if e := <-errs; err == nil {
			err = e
		}
	}
	return err
}

// Sizes of payloads: the number must fit, and the noise must do.
const (
	minSize = 8
	maxSize = 1 << 20
)

// noise is where payloads come from: random bytes, so that no compression helps.
var noise = func() []byte {
	b := make([]byte, maxSize+1<<20)
	_, _ = rand.Read(b)
	return b
}()

// fillPayload makes b the payload of the message with this number.
func fillPayload(b []byte, number int) []byte {
	copy(b, noise[number*31%(1<<20):])
	binary.BigEndian.PutUint64(b, uint64(number))
	return b
}

func numberOf(payload []byte) int { return int(binary.BigEndian.Uint64(payload)) }

// defaultKeys are 1,000 customers.
const defaultKeys = 1000

var names []string

// keyNames returns n keys. It is called by one goroutine at a time.
func keyNames(n int) []string {
	for i := len(names); i < n; i++ {
		names = append(names, "customer-"+strconv.Itoa(i))
	}
	return names[:n]
}
