package rabbitmq

import (
	"context"
	"sync"
)

// sharedLock is a lock that is slow to take. Several callers share it: the first takes it, the last
// gives it back.
type sharedLock struct {
	mu    sync.Mutex
	users int
	held  *attempt[func()] // the function that gives it back
}

// take waits for the lock until ctx ends. acquire takes it, if nobody has it yet.
func (l *sharedLock) take(ctx context.Context, acquire func() (release func(), err error)) (leave func(), err error) {
	l.mu.Lock()
	if l.users++; l.users == 1 {
		l.held = start(acquire)
	}
	held := l.held
	l.mu.Unlock()
	if _, err := held.wait(ctx); err != nil {
		l.leave()
		return nil, err
	}
	return l.leave, nil
}

func (l *sharedLock) leave() {
	l.mu.Lock()
	l.users--
	last, held := l.users == 0, l.held
	l.mu.Unlock()
	if !last {
		return
	}
	release := func() {
		if <-held.done; held.err == nil {
			held.v()
		}
	}
	if held.ended() {
		release()
	} else { // nobody waits for it any more
		go release()
	}
}
