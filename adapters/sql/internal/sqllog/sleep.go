package sqllog

import "time"

// sleep waits for d, and returns false if one of the channels is closed before.
func sleep(d time.Duration, closing, done <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-closing:
	case <-done:
	}
	return false
}
