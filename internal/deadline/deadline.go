// Package deadline is context.WithTimeout for calls that nearly always end long before, and seldom
// look at their context. It makes the timer only when somebody asks for Done.
package deadline

import (
	"context"
	"sync"
	"time"
)

// Context ends at its time, when its parent does, or by Cancel. Its life is one call, which must
// call Cancel.
type Context struct {
	context.Context // the parent
	at              time.Time

	mu     sync.Mutex
	inner  context.Context // the context that ends, once somebody has asked for it
	cancel context.CancelFunc
	over   bool // Cancel was called
}

// After makes a context that ends after d. Unlike context.WithTimeout it returns no function, which
// would cost an allocation: call Cancel.
func After(parent context.Context, d time.Duration) *Context {
	c := &Context{Context: parent, at: time.Now().Add(d)}
	if at, ok := parent.Deadline(); ok && at.Before(c.at) {
		c.at = at
	}
	return c
}

// Deadline implements context.Context.
func (c *Context) Deadline() (time.Time, bool) { return c.at, true }

// Done implements context.Context.
func (c *Context) Done() <-chan struct{} { return c.ending().Done() }

// Err implements context.Context.
func (c *Context) Err() error {
	c.mu.Lock()
	idle := c.inner == nil && !c.over
	c.mu.Unlock()
	if idle && c.Context.Err() == nil && time.Now().Before(c.at) {
		return nil
	}
	return c.ending().Err()
}

// Value implements context.Context. By it package context finds the inner context. So child
// contexts need no goroutine, and context.Cause works.
func (c *Context) Value(key any) any {
	c.mu.Lock()
	from := c.inner
	c.mu.Unlock()
	if from == nil {
		from = c.Context
	}
	return from.Value(key)
}

// ending makes the context that ends.
func (c *Context) ending() context.Context {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.inner == nil {
		c.inner, c.cancel = context.WithDeadline(c.Context, c.at)
		if c.over {
			c.cancel()
		}
	}
	return c.inner
}

// Cancel ends the context.
func (c *Context) Cancel() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.cancel != nil {
		c.cancel()
	}
}
