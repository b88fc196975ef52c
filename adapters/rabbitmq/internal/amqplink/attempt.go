package amqplink

import "context"

// Attempt is something that several callers wait for, each within its own context. When a context
// ends first, the attempt goes on: it ends with the broker's answer or with the session.
type Attempt[T any] struct {
	done chan struct{}
	v    T
	err  error
}

// Start runs f in a goroutine of its own.
func Start[T any](f func() (T, error)) *Attempt[T] {
	a := &Attempt[T]{done: make(chan struct{})}
	go func() {
		defer close(a.done)
		a.v, a.err = f()
	}()
	return a
}

// Done is closed when the attempt has ended.
func (a *Attempt[T]) Done() <-chan struct{} { return a.done }

// Ended reports whether the attempt has ended.
func (a *Attempt[T]) Ended() bool {
	select {
	case <-a.done:
		return true
	default:
		return false
	}
}

// Failed reports whether the attempt has ended with an error.
func (a *Attempt[T]) Failed() bool { return a.Ended() && a.err != nil }

// Result waits for the attempt's end, and returns what came of it.
func (a *Attempt[T]) Result() (T, error) {
	<-a.done
	return a.v, a.err
}

// Wait is Result within ctx. An attempt that has ended is told of even if ctx has ended, too.
func (a *Attempt[T]) Wait(ctx context.Context) (T, error) {
	if !a.Ended() {
		select {
		case <-a.done:
		case <-ctx.Done():
			var zero T
			return zero, context.Cause(ctx)
		}
	}
	return a.v, a.err
}
