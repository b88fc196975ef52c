package kafka

import (
	"context"

	"github.com/millrace-go/millrace/internal/backoff"
)

// persist calls f again while its error may pass, until ctx ends; then it returns the last error
// that f had before.
func persist(ctx context.Context, f func() error) error {
	var last error // says more than that the time is up
	for b := (backoff.Backoff{}); ; {
		err := f()
		if err == nil || !retryable(err) {
			return err
		}
		if last == nil || ctx.Err() == nil {
			last = err
		}
		if !b.Wait(ctx) {
			return last
		}
	}
}
