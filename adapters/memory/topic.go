package memory

import (
	"context"
	"fmt"
	"hash/maphash"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// lanes is the number of lanes of a topic, and of members of a group that can share it.
const lanes = 16

// topic is a log in lanes. Its lock guards the groups too.
type topic struct {
	name   string
	config Config
	seed   maphash.Seed
	intake intake
	events *eventLog // nil: the topic is no event store

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

// append stores messages. It returns the number stored before it gave up.
func (t *topic) append(ctx context.Context, closed <-chan struct{}, msgs []*bus.Message) (int, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	n := 0
	for {
		added, wake, err := t.intake.add(closed, msgs[n:])
		n += added
		if wake {
			t.mu.Lock()
			t.wakeSources()
			t.mu.Unlock()
		}
		if err != nil || n == len(msgs) {
			return n, err
		}
		if err := t.makeRoom(ctx, closed, msgs[n].Size()); err != nil {
			return n, err
		}
	}
}

// admit moves messages from the intake into the lanes. Call it with the lock held before reading
// the lanes.
func (t *topic) admit() {
	entries := t.intake.take()
	for i := range entries {
		e := &entries[i]
		e.seq = t.seq
		t.logs[t.laneOf(&e.msg)].push(e)
		t.seq++
		t.bytes += e.size
	}
	t.stored += len(entries)
	t.intake.giveBack(entries)
}

func (t *topic) laneOf(m *bus.Message) uint64 {
	if m.Key == "" {
		t.free++
		return uint64(t.free / 64 % lanes) // runs of 64, so that batches stay together
	}
	return maphash.String(t.seed, m.Key) % lanes
}

// makeRoom lets the intake take more messages; one of them has the size. Before it waits it wakes
// consumers: they may have to make the room.
func (t *topic) makeRoom(ctx context.Context, closed <-chan struct{}, size int) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.offer(size) {
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
		if t.offer(size) {
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

// offer gives the intake the topic's room, and reports whether a message of the size fits.
func (t *topic) offer(size int) bool {
	for {
		t.admit()
		t.evict()
		bytes := t.config.Bytes - t.bytes
		if t.stored == 0 {
			bytes = max(bytes, size)
		}
		enough, some := t.intake.allow(t.config.Capacity-t.stored, bytes, size)
		if enough || !some { // else others have used the room: admit their messages to make more
			return enough
		}
	}
}

// evict forgets messages that every group has settled, oldest first, down to the number to retain.
// If it can, it makes room for one sixteenth of the capacity; without a group it makes no more than
// that.
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
	base, next int64 // positions of the oldest and of the next message
}

type entry struct {
	msg  bus.Message
	seq  int64
	size int
}

func (l *log) at(pos int64) *entry {
	return &l.ring[pos&int64(len(l.ring)-1)]
}

func (l *log) push(e *entry) {
	if int(l.next-l.base) == len(l.ring) {
		l.grow()
	}
	*l.at(l.next) = *e
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

// since is the position of the first message with a time of t or later.
func (l *log) since(t time.Time) int64 {
	for pos := l.base; pos < l.next; pos++ {
		if !l.at(pos).msg.Time.Before(t) {
			return pos
		}
	}
	return l.next
}
