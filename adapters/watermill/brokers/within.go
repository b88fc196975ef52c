package brokers

import (
	"context"
	"io"
)

// within calls open, which takes no context, and waits for it within ctx. A value that comes later
// is closed again.
func within[T io.Closer](ctx context.Context, open func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	over := make(chan result, 1)
	go func() {
		value, err := open()
		over <- result{value, err}
	}()
	select {
	case r := <-over:
		return r.value, r.err
	case <-ctx.Done():
		go func() {
			if late := <-over; late.err == nil {
				_ = late.value.Close() // nobody waits for it any more
			}
		}()
		var none T
		return none, ctx.Err()
	}
}
