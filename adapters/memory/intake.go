package memory

import (
	"sync"

	"github.com/millrace-go/millrace/bus"
)

// intake is where publishers leave messages, under a lock that consumers hold only for a moment.
// The topic sets its room. Lock order: the topic's lock first, then the intake's.
type intake struct {
	mu       sync.Mutex
	entries  []entry
	held     int // bytes of the entries
	messages int // messages that fit before the topic must be asked
	bytes    int
	asleep   bool // consumers wait for messages

	spare []entry // of the topic, guarded by the topic's lock
}

// intakeRun bounds the messages that publishers leave before one of them takes all into the topic.
// So the memory that holds them stays in the processor's cache.
const intakeRun = 1024

// add takes as many messages as fit. wake tells the caller to wake consumers.
func (in *intake) add(closed <-chan struct{}, msgs []*bus.Message) (n int, wake bool, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	select {
	case <-closed: // checked under the lock: earlier messages are in, later ones are refused
		return 0, false, bus.ErrClosed
	default:
	}
	for _, m := range msgs {
		size := m.Size()
		if in.messages < 1 || in.bytes < size {
			break
		}
		in.entries = append(in.entries, entry{msg: *m, size: size})
		in.held += size
		in.messages--
		in.bytes -= size
		n++
	}
	if n > 0 {
		wake, in.asleep = in.asleep, false
	}
	return n, wake, nil
}

// take takes all messages. The caller returns the slice after use.
func (in *intake) take() []entry {
	in.mu.Lock()
	defer in.mu.Unlock()
	entries := in.entries
	in.entries, in.spare, in.held = in.spare, nil, 0
	return entries
}

func (in *intake) giveBack(entries []entry) {
	clear(entries)
	in.spare = entries[:0]
}

// allow sets the topic's room in messages and bytes, including the messages that are here. enough:
// one more message of the size fits. some: messages are here.
func (in *intake) allow(messages, bytes, size int) (enough, some bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.messages, in.bytes = min(messages-len(in.entries), intakeRun), bytes-in.held
	return in.messages > 0 && in.bytes >= size, len(in.entries) > 0
}

// sleep makes publishers wake consumers, unless messages are here.
func (in *intake) sleep() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.asleep = len(in.entries) == 0
	return in.asleep
}
