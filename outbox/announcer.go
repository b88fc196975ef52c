package outbox

import (
	"sync"
	"time"
)

// announcer tells relays in other processes of commits. It sends the first notice at once, and
// further ones together after announcePause. PostgreSQL serialises the commits of all transactions
// that notify. So the notice never goes out in the user's transaction, nor once for each.
type announcer struct {
	mu      sync.Mutex
	next    func(timeout time.Duration) error
	running bool
}

const (
	announcePause   = 20 * time.Millisecond
	announceTimeout = 5 * time.Second
)

func (a *announcer) announce(say func(timeout time.Duration) error) {
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
		_ = say(announceTimeout) // only a hint: a relay that misses it soon looks by itself
		time.Sleep(announcePause)
	}
}
