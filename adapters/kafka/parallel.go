package kafka

import "sync"

// readers is how many partitions are read at the same time: each read takes memory.
const readers = 8

// atOnce calls f for the numbers below n, several at a time.
func atOnce(n int, f func(int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, readers)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}
