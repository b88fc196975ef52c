package kafka

import (
	"sync"
	"time"
)

// patience bounds how long publishes wait. Publishes that begin at about the same time share a
// timer. With a timer each, many callers spend a twentieth of their time on timers that never fire.
type patience struct {
	timeout time.Duration

	mu    sync.Mutex
	until time.Time     // publishes that begin earlier share ended
	ended chan struct{} // closed by a timer
}

// begin returns a channel that is closed when the timeout is over, and at most a sixteenth of it
// later.
func (p *patience) begin() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := time.Now(); !now.Before(p.until) {
		shared := p.timeout / 16
		ended := make(chan struct{})
		time.AfterFunc(p.timeout+shared, func() { close(ended) })
		p.ended, p.until = ended, now.Add(shared)
	}
	return p.ended
}
