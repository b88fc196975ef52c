package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/millrace-go/millrace/bus"
)

// Run consumes until ctx ends, [Router.Shutdown] is called, a function of Go fails or a handler's
// start fails for good. Then it drains: no new messages, running handlers to their end with a live
// context, at most for the [DrainTimeout], everything settled. It returns nil after a clean drain
// that was asked for.
//
// Handlers, and functions of Go, see the values of ctx.
//
// Messages received and not begun are given back to the broker. A router runs once: a second call
// is an error.
func (r *Router) Run(ctx context.Context) error {
	c := r.core
	tasks, err := c.begin(ctx)
	if err != nil {
		return err
	}
	go c.awaitStart()
	select {
	case <-ctx.Done():
	case <-c.ending:
	}
	err = c.drain(ctx)
	tasks.cancel()
	err = errors.Join(err, c.awaitTasks(tasks))
	<-c.ready
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase = ended
	c.result = errors.Join(c.failure, err)
	close(c.done)
	return c.result
}

// taskGroup are the functions of Go.
type taskGroup struct {
	sync.WaitGroup
	cancel context.CancelFunc
}

// begin starts everything.
func (c *core) begin(ctx context.Context) (*taskGroup, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.phase != idle {
		if c.phase == ended {
			return nil, fmt.Errorf("router: Run was called after the router's end: %w", bus.ErrClosed)
		}
		return nil, fmt.Errorf("router: %w: Run was called twice", bus.ErrInvalid)
	}
	c.values = context.WithoutCancel(ctx)
	consumers, err := c.planAll()
	if err != nil {
		c.phase, c.result = ended, err
		close(c.done)
		return nil, err
	}
	c.phase = running
	tasks := &taskGroup{}
	var taskCtx context.Context
	taskCtx, tasks.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, t := range c.tasks {
		tasks.Go(func() {
			if err := t.run(taskCtx); err != nil && taskCtx.Err() == nil {
				c.end(fmt.Errorf("%s: %w", t.name, err))
			}
		})
	}
	for _, k := range consumers {
		c.launch(k)
	}
	return tasks, nil
}

// launch starts a consumer in the background. Called with the lock held.
func (c *core) launch(k *consumer) {
	c.consumers = append(c.consumers, k)
	for _, r := range k.table.routes {
		r.consumer.Store(k)
		if r.paused.Load() {
			k.pause(true)
		}
	}
	go func() {
		err := k.start()
		for _, r := range k.table.routes {
			r.startErr = err
			close(r.ready)
		}
		if err != nil && k.intake.Err() == nil {
			c.end(err)
		}
	}()
}

// awaitStart declares the router ready when all handlers that it had at first have started.
func (c *core) awaitStart() {
	c.mu.Lock()
	first := append([]*Route(nil), c.routes...)
	c.mu.Unlock()
	var errs []error
	for _, r := range first {
		<-r.ready
		errs = append(errs, r.startErr)
	}
	c.startErr = errors.Join(errs...)
	close(c.ready)
}

// add takes a new handler in, and starts it if the router runs.
func (c *core) add(r *Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	refuse := func(err error) {
		r.startErr = err
		close(r.ready)
		c.log.Error("handler not added", "err", err)
	}
	switch c.phase {
	case idle:
		c.routes = append(c.routes, r)
		return
	case draining, ended:
		refuse(fmt.Errorf("handler %s: the router has ended: %w", r.name, bus.ErrClosed))
		return
	}
	for _, other := range c.routes {
		if other.group == r.group && other.topic == r.topic && !other.stopped() {
			refuse(fmt.Errorf("handler %s: %w: the group consumes this topic already; add handlers that share one before Run", r.name, bus.ErrInvalid))
			return
		}
		if other.name == r.name && !other.stopped() {
			refuse(fmt.Errorf("handler %s: %w: another handler has this name", r.name, bus.ErrInvalid))
			return
		}
	}
	consumers, err := c.plan([]*Route{r})
	if err != nil {
		refuse(err)
		return
	}
	c.forgetStopped(r)
	c.routes = append(c.routes, r)
	c.launch(consumers[0])
}

// forgetStopped forgets handlers that were stopped before r came, because their consumers hold much
// memory. One that failed is kept for Health, until r takes its place.
func (c *core) forgetStopped(r *Route) {
	c.routes = slices.DeleteFunc(c.routes, func(o *Route) bool {
		replaced := o.name == r.name || o.group == r.group && o.topic == r.topic
		return o.stopped() && (replaced || o.consumer.Load().stateNow() == StateStopped)
	})
	c.consumers = slices.DeleteFunc(c.consumers, func(k *consumer) bool {
		return !slices.ContainsFunc(c.routes, func(o *Route) bool { return o.consumer.Load() == k })
	})
}

func (r *Route) stopped() bool {
	c := r.consumer.Load()
	if c == nil {
		return false
	}
	select {
	case <-c.stopped:
		return true
	default:
		return false
	}
}

// end asks for the end of Run; the first error is its result.
func (c *core) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure == nil {
		c.failure = err
	}
	select {
	case <-c.ending:
	default:
		close(c.ending)
	}
}

// drain stops all consumers at once.
func (c *core) drain(ctx context.Context) error {
	c.mu.Lock()
	c.phase = draining
	consumers := c.consumers
	c.mu.Unlock()
	c.log.Info("draining", "timeout", c.drainTimeout)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.drainTimeout)
	defer cancel()
	go func() {
		select {
		case <-c.hurry:
			cancel()
		case <-ctx.Done():
		}
	}()
	errs := make([]error, len(consumers))
	var wg sync.WaitGroup
	for i, k := range consumers {
		wg.Go(func() {
			if err := k.stop(ctx); k.stateNow() != StateFailed { // why it failed was said when it did
				errs[i] = err
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// awaitTasks waits for the functions of Go, as long as a drain may last.
func (c *core) awaitTasks(tasks *taskGroup) error {
	ctx, cancel := context.WithTimeout(context.Background(), c.drainTimeout)
	defer cancel()
	over := make(chan struct{})
	go func() {
		tasks.Wait()
		close(over)
	}()
	select {
	case <-over:
		return nil
	case <-c.hurry:
		return errors.New("functions passed to Go still ran when Shutdown's context ended")
	case <-ctx.Done():
		return fmt.Errorf("functions passed to Go still ran %v after the handlers had drained", c.drainTimeout)
	}
}

// Ready waits until all handlers that were added before Run consume: their groups exist, and
// messages published from now on reach them. It returns the error with which a start failed, or the
// context's.
func (r *Router) Ready(ctx context.Context) error {
	c := r.core
	select {
	case <-c.ready:
		return c.startErr
	default:
	}
	select {
	case <-c.ready:
		return c.startErr
	case <-c.done: // it ended without having started
		return fmt.Errorf("router: %w", errors.Join(bus.ErrClosed, c.result))
	case <-ctx.Done():
		return fmt.Errorf("router is not ready: %w", errors.Join(ctx.Err(), r.Health().Err()))
	}
}

// Shutdown asks Run to drain and waits for it within ctx; when ctx ends, the drain is cut short:
// the contexts of handlers that still run are cancelled. It returns Run's error. Before Run it
// makes every later Run fail. It may be called any number of times.
func (r *Router) Shutdown(ctx context.Context) error {
	c := r.core
	c.mu.Lock()
	if c.phase == idle {
		c.phase = ended
		c.result = nil
		close(c.done)
		c.mu.Unlock()
		return nil
	}
	c.mu.Unlock()
	c.end(nil)
	select {
	case <-c.done:
		return c.result
	case <-ctx.Done():
	}
	c.mu.Lock()
	select {
	case <-c.hurry:
	default:
		close(c.hurry)
	}
	c.mu.Unlock()
	<-c.done
	return c.result
}
