package kafka

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestPatience: nobody's wait ends early, nor later than by a sixteenth, and waits that begin
// together share a timer.
func TestPatience(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const timeout = 16 * time.Second
		p := &patience{timeout: timeout}
		timers := map[<-chan struct{}]bool{}
		took := make(chan time.Duration)
		const calls = 50
		for range calls {
			ended, began := p.begin(), time.Now()
			timers[ended] = true
			go func() {
				<-ended
				took <- time.Since(began)
			}()
			time.Sleep(300 * time.Millisecond)
		}
		for range calls {
			if d := <-took; d < timeout || d > timeout+time.Second {
				t.Errorf("a wait ended after %v, want %v and at most a second more", d, timeout)
			}
		}
		if len(timers) > calls/3 {
			t.Errorf("%d waits had %d timers, want one for about four", calls, len(timers))
		}
	})
}
