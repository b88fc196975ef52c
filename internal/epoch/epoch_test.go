package epoch

import (
	"sync"
	"testing"
	"time"
)

func TestEpochsGrowFromTheClock(t *testing.T) {
	if e := Next(); e > uint64(time.Now().UnixNano()) || e < uint64(time.Now().Add(-time.Hour).UnixNano()) {
		t.Errorf("epoch %d is no time of this run", e)
	}
	var mu sync.Mutex
	seen := map[uint64]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			last := uint64(0)
			for range 100 {
				e := Next()
				mu.Lock()
				if seen[e] || e <= last {
					t.Errorf("epoch %d after %d", e, last)
				}
				seen[e], last = true, e
				mu.Unlock()
			}
		})
	}
	wg.Wait()
}
