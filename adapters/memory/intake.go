package memory

import (
	"sync"

	"github.com/millrace-go/millrace/bus"
)

// intake is where publishers leave messages, under a lock that consumers hold for a moment only. The topic says how many it may take;
// its lock may be held when that of the intake is taken, and not the other way round.
type intake struct {
	mu       sync.Mutex
	entries  []entry
	held     int // bytes of the entries
	messages int // that may come before the topic has to be asked
	bytes    int
	asleep   bool // consumers wait for messages

	spare []entry // of the topic, which has its lock
}

// intakeRun is how many messages publishers leave at most before one of them takes all into the topic: the memory that holds them stays in
// the processor's cache.
const intakeRun = 1024

// add takes as many messages as there is room for. wake says that consumers are to be woken.
func (in *intake) add(closed <-chan struct{}, msgs []*bus.Message) (n int, wake bool, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	select {
	case <-closed: // checked under the lock: what came before is there, and nothing comes after
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

// take takes all that is there. The caller gives it back when it has what it needs.
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

// allow says for how many messages and bytes the topic has room, with those that are here. It returns whether that is enough for one more of
// the size, and whether some are here.
func (in *intake) allow(messages, bytes, size int) (enough, some bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.messages, in.bytes = min(messages-len(in.entries), intakeRun), bytes-in.held
	return in.messages > 0 && in.bytes >= size, len(in.entries) > 0
}

// sleep has publishers wake consumers, unless there is something.
func (in *intake) sleep() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.asleep = len(in.entries) == 0
	return in.asleep
}
