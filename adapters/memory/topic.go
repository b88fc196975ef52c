package memory

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// lanes is the number of lanes of a topic: how many members of a group can share it.
const lanes = 16

// topic is a log in lanes. Its lock guards the groups too.
type topic struct {
	name   string
	config Config
	seed   maphash.Seed

	mu      sync.Mutex
	logs    [lanes]log
	groups  map[string]*group
	stored  int // messages
	bytes   int
	free    uint32 // the lane of the next message without a key
	seq     int64  // number of the next message, across lanes
	asleep  []*source
	waiting int // publishers that wait for room
	room    *sync.Cond
}

func newTopic(name string, c Config) *topic {
	t := &topic{name: name, config: c, seed: maphash.MakeSeed(), groups: map[string]*group{}}
	t.room = sync.NewCond(&t.mu)
	return t
}

// append stores messages, and returns how many before it had to give up.
func (t *topic) append(ctx context.Context, closed <-chan struct{}, msgs []*bus.Message) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-closed: // checked under the lock: what was appended before is there, and nothing comes after
		return 0, bus.ErrClosed
	default:
	}
	defer t.wakeSources()
	for i, m := range msgs {
		size := m.Size()
		if t.stored >= t.config.Capacity || t.bytes+size > t.config.Bytes {
			if err := t.waitForRoom(ctx, closed, size); err != nil {
				return i, err
			}
		}
		lane := &t.logs[t.laneOf(m)]
		lane.push(m, t.seq, size)
		t.seq++
		t.stored++
		t.bytes += size
	}
	return len(msgs), nil
}

func (t *topic) laneOf(m *bus.Message) uint64 {
	if m.Key == "" {
		t.free++
		return uint64(t.free / 64 % lanes) // runs of 64, so that batches stay together
	}
	return maphash.String(t.seed, m.Key) % lanes
}

// waitForRoom waits until a message of the size fits. Consumers are woken first: they may have to make the room.
func (t *topic) waitForRoom(ctx context.Context, closed <-chan struct{}, size int) error {
	fits := func() bool {
		return t.stored < t.config.Capacity && (t.bytes+size <= t.config.Bytes || t.stored == 0)
	}
	if t.evict(); fits() {
		return nil
	}
	t.wakeSources()
	t.waiting++
	defer func() { t.waiting-- }()
	wake := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.room.Broadcast()
	}
	defer context.AfterFunc(ctx, wake)()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-closed:
			wake()
		case <-stop:
		}
	}()
	for {
		if t.evict(); fits() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("the topic is full (%d messages, %d bytes) because a group has not settled them: %w", t.stored, t.bytes, err)
		}
		select {
		case <-closed:
			return bus.ErrClosed
		default:
		}
		t.room.Wait()
	}
}

// evict forgets messages that every group has settled, the oldest first, down to what is to be retained; but it makes room for
// one sixteenth of the capacity if it can. With no group it makes no more than that.
func (t *topic) evict() {
	most := t.config.Capacity - 1 - t.config.Capacity/16
	keep, keepBytes := min(t.config.Retain, most), t.config.Bytes/2
	if len(t.groups) == 0 {
		keep, keepBytes = most, t.config.Bytes-t.config.Bytes/16
	}
	for keep > 0 && t.bytes > keepBytes && t.stored <= keep {
		keep /= 2 // few large messages: go by bytes
	}
	for i := range t.logs {
		l := &t.logs[i]
		limit := l.next
		for _, g := range t.groups {
			limit = min(limit, g.lanes[i].window.Position())
		}
		for l.base < limit && l.at(l.base).seq < t.seq-int64(keep) {
			t.bytes -= l.pop()
			t.stored--
		}
	}
}

// wakeSources wakes members that wait for messages. Called with the lock held.
func (t *topic) wakeSources() {
	for _, s := range t.asleep {
		s.wake.Broadcast()
	}
	t.asleep = t.asleep[:0]
}

// log is one lane: a ring of messages that grows as needed.
type log struct {
	ring       []entry
	base, next int64 // positions of the oldest message and of the one to come
}

type entry struct {
	msg  bus.Message
	seq  int64
	size int
}

func (l *log) at(pos int64) *entry {
	return &l.ring[pos&int64(len(l.ring)-1)]
}

func (l *log) push(m *bus.Message, seq int64, size int) {
	if int(l.next-l.base) == len(l.ring) {
		l.grow()
	}
	e := l.at(l.next)
	e.msg, e.seq, e.size = *m, seq, size
	l.next++
}

func (l *log) grow() {
	ring := make([]entry, max(64, 2*len(l.ring)))
	for pos := l.base; pos < l.next; pos++ {
		ring[pos&int64(len(ring)-1)] = *l.at(pos)
	}
	l.ring = ring
}

func (l *log) pop() (size int) {
	e := l.at(l.base)
	size = e.size
	*e = entry{}
	l.base++
	return size
}

// since is the position of the first message whose time is t or later.
func (l *log) since(t time.Time) int64 {
	for pos := l.base; pos < l.next; pos++ {
		if !l.at(pos).msg.Time.Before(t) {
			return pos
		}
	}
	return l.next
}
