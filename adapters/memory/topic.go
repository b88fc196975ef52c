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
	asleep  int    // sources that wait for messages
	waiting int    // publishers that wait for room
	room    *sync.Cond
}

func newTopic(name string, c Config) *topic {
	t := &topic{name: name, config: c, seed: maphash.MakeSeed(), groups: map[string]*group{}}
	t.room = sync.NewCond(&t.mu)
	return t
}

// append stores messages, and returns how many before it had to give up.
func (t *topic) append(ctx context.Context, closed <-chan struct{}, msgs []*bus.Message) (int, error) {
	now := time.Now().UnixNano()
	t.mu.Lock()
	defer t.mu.Unlock()
	defer t.wakeSources()
	for i, m := range msgs {
		size := m.Size()
		if t.stored >= t.config.Capacity || t.bytes+size > t.config.Bytes {
			if err := t.waitForRoom(ctx, closed, size); err != nil {
				return i, err
			}
		}
		lane := &t.logs[t.laneOf(m)]
		lane.push(m, now, size)
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

// evict forgets messages that every group has settled, the oldest first, down to what is to be retained; with no
// group, it makes room for one sixteenth of the capacity.
func (t *topic) evict() {
	keep := t.config.Retain
	keepBytes := t.config.Bytes / 2
	if len(t.groups) == 0 {
		keep, keepBytes = t.config.Capacity-1-t.config.Capacity/16, t.config.Bytes-t.config.Bytes/16
	}
	var limit [lanes]int64 // what may go lies below
	for i := range limit {
		limit[i] = t.logs[i].next
		for _, g := range t.groups {
			limit[i] = min(limit[i], g.lanes[i].window.Position())
		}
	}
	for t.stored > keep || t.bytes > keepBytes {
		oldest := -1
		for i := range t.logs {
			l := &t.logs[i]
			if l.base < limit[i] && (oldest < 0 || l.first().at < t.logs[oldest].first().at) {
				oldest = i
			}
		}
		if oldest < 0 {
			return
		}
		t.stored--
		t.bytes -= t.logs[oldest].pop()
	}
}

// wakeSources wakes members that wait for messages. Called with the lock held.
func (t *topic) wakeSources() {
	if t.asleep == 0 {
		return
	}
	for _, g := range t.groups {
		for _, s := range g.members {
			if s.sleeping {
				s.wake.Broadcast()
			}
		}
	}
}

// log is one lane: a ring of messages that grows as needed.
type log struct {
	ring       []entry
	base, next int64 // positions of the oldest message and of the one to come
}

type entry struct {
	msg  bus.Message
	at   int64 // when it was published, Unix ns
	size int
}

func (l *log) at(pos int64) *entry { return &l.ring[pos&int64(len(l.ring)-1)] }
func (l *log) first() *entry       { return l.at(l.base) }

func (l *log) push(m *bus.Message, at int64, size int) {
	if int(l.next-l.base) == len(l.ring) {
		l.grow()
	}
	e := l.at(l.next)
	e.msg, e.at, e.size = *m, at, size
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
	e := l.first()
	size = e.size
	*e = entry{}
	l.base++
	return size
}

// since is the position of the first message published at t or later.
func (l *log) since(t time.Time) int64 {
	at := t.UnixNano()
	for pos := l.base; pos < l.next; pos++ {
		if l.at(pos).at >= at {
			return pos
		}
	}
	return l.next
}
