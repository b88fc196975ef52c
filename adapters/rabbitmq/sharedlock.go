package rabbitmq

import (
	"context"
	"sync"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
)

// sharedLock is a lock that is slow to take. Several callers share it: the first takes it, the last
// gives it back.
type sharedLock struct {
	mu    sync.Mutex
	users int
	held  *amqplink.Attempt[func()] // the function that gives it back
}

// take waits for the lock until ctx ends. acquire takes it, if nobody has it yet.
func (l *sharedLock) take(ctx context.Context, acquire func() (release func(), err error)) (unlock func(), err error) {
	l.mu.Lock()
	if l.users++; l.users == 1 {
		l.held = amqplink.Start(acquire)
	}
	held := l.held
	l.mu.Unlock()
	if _, err := held.Wait(ctx); err != nil {
		l.release()
		return nil, err
	}
	return l.release, nil
}

func (l *sharedLock) release() {
	l.mu.Lock()
	l.users--
	last, held := l.users == 0, l.held
	l.mu.Unlock()
	if !last {
		return
	}
	if held.Ended() {
		giveBack(held)
	} else { // nobody waits for it any more
		go giveBack(held)
	}
}

// giveBack gives the lock back, if it is ever taken.
func giveBack(held *amqplink.Attempt[func()]) {
	if unlock, err := held.Result(); err == nil {
		unlock()
	}
}
