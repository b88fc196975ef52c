package outbox

import (
	"context"
	"sync"
	"time"
)

// announcer tells relays in other processes of commits. The first word goes at once, further ones together after
// announcePause: PostgreSQL serialises the commits of all transactions that notify, so it is never done in the user's
// transaction, and never once for each.
type announcer struct {
	mu      sync.Mutex
	next    func(context.Context) error
	running bool
}

const (
	announcePause   = 20 * time.Millisecond
	announceTimeout = 5 * time.Second
)

func (a *announcer) announce(say func(context.Context) error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = say
	if !a.running {
		a.running = true
		go a.run()
	}
}

func (a *announcer) run() {
	for {
		a.mu.Lock()
		say := a.next
		if a.next = nil; say == nil {
			a.running = false
			a.mu.Unlock()
			return
		}
		a.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), announceTimeout)
		_ = say(ctx) // only a hint: who misses it looks by itself before long
		cancel()
		time.Sleep(announcePause)
	}
}
