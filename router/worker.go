package router

import (
	"context"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// worker calls handlers, one at a time.
type worker struct {
	c            *consumer
	batchesFirst bool

	// The tasks that it has taken: n single tasks. next is the first that nobody has begun;
	// finished has a bit for each that it has handled. While it is busy with a slow task, others
	// steal the tasks it has not begun and hand back the ones it has finished. Written with the
	// consumer's lock held, but for next and finished.
	tasks    [maxTake]*task
	n        int
	next     atomic.Int32
	finished atomic.Uint32
	at       int   // the task being handled, or -1
	watched  int32 // next, when the watchdog last looked

	// Or a batch.
	many []*task
	ids  map[string]bool // of many: outputs go by ids, so none is in a batch twice
	now  []*task         // being handled
	done []*task         // handled, to be handed back

	handling *bus.Handling // of the batch

	goexit *PanicError // how the handler ended the goroutine

	pace  time.Duration
	paced bool // pace is known
}

// run is the worker's goroutine: it handles the tasks it has taken, then takes more.
func (w *worker) run() {
	defer w.ended()
	for {
		start := time.Now()
		if handled := w.handleTaken(); handled > 0 {
			w.observe(time.Since(start), handled)
		}
		if !w.exchange() {
			return
		}
	}
}

// handleTaken handles the tasks that the worker has taken and nobody stole. It returns the number
// of calls.
func (w *worker) handleTaken() (calls int) {
	if batch := w.many; batch != nil {
		w.many = nil
		w.handleBatch(batch)
		return 1
	}
	for {
		i := int(w.next.Add(1)) - 1
		if i >= w.n {
			return calls
		}
		w.at = i
		w.handle(w.tasks[i])
		w.at = -1
		w.finished.Or(1 << i)
		calls++
	}
}

// observe keeps a moving average of a call's time. A slow call is believed at once, quick ones little by little.
func (w *worker) observe(took time.Duration, calls int) {
	each := took / time.Duration(max(calls, 1))
	if each > w.pace {
		w.pace = each
	} else {
		w.pace -= (w.pace - each) / 8
	}
	w.paced = true
}

// quick says whether calls are known to be so short that the lock dominates the cost.
func (w *worker) quick() bool { return w.paced && w.pace < quick }

// exchange hands back finished tasks and takes ready ones, under one lock; it waits when there are
// none. It returns false at the end.
func (w *worker) exchange() bool {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.finishHandled(w)
	for _, t := range w.done {
		c.finish(t)
	}
	clear(w.done)
	w.done = w.done[:0]
	for !c.draining {
		took := c.take(w)
		if !took {
			c.crew.idle++
		}
		if c.flight.full {
			c.relieve()
		}
		if took {
			c.shareWork(w)
			return true
		}
		c.crew.work.Wait()
		c.crew.idle--
	}
	return false
}

// ended runs when the goroutine ends: at the drain, or because a handler called runtime.Goexit. Then the task counts
// as failed and another goroutine goes on as this worker.
func (w *worker) ended() {
	c := w.c
	if w.at >= 0 || len(w.now) > 0 {
		goexit := w.goexit
		// in a function that the handler had registered for the end
		if w.goexit = nil; goexit == nil {
			goexit = &PanicError{Value: ErrGoexit, Stack: string(debug.Stack())}
		}
		if w.at >= 0 {
			h := w.tasks[w.at].h
			engine.Discard(h)
			w.observed(h, h.Delivery, 1, time.Now(), goexit)
			c.decide(w.tasks[w.at], goexit)
			w.finished.Or(1 << w.at)
			w.at = -1
		}
		if w.handling != nil {
			engine.Discard(w.handling)
			w.observed(w.handling, w.handling.Delivery, len(w.now), time.Now(), goexit)
		}
		for _, t := range w.now {
			c.decide(t, goexit)
			w.done = append(w.done, t)
		}
		w.now, w.handling = nil, nil
		go w.run()
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.crew.running--
	c.crew.work.Broadcast() // drain waits for this
}

// handle calls the handler of one message, and decides its next step.
func (w *worker) handle(t *task) {
	c := w.c
	if c.cannotBegin(t) {
		return
	}
	if t.entry != nil {
		c.decidePoison(t, c.cfg.unknownWaits && t.failure.Class == unknownType, time.Now())
		return
	}
	if c.cfg.guarantee == AtMostOnce && !c.settleFirst(t) {
		t.outcome = abandon
		return
	}
	t.tries++
	h := t.h
	if t.route.joining != nil {
		engine.SetJoiner(h, driver.NewJoiner(c.join([]*task{t})))
	}
	start := w.clock()
	err := w.call(h, t.route, t.h.Delivery.Message)
	if t.route.policy.ignores(err) {
		err = bus.Ignore(err)
	}
	if err == nil || bus.IsIgnored(err) {
		if ferr := c.publishOutputs(t, h); ferr != nil {
			err = ferr
		}
	} else {
		engine.Discard(h)
	}
	w.observed(h, t.h.Delivery, 1, start, err)
	c.decide(t, err)
}

// cannotBegin says whether a task's handler is not called any more, and notes the next step.
func (c *consumer) cannotBegin(t *task) bool {
	switch {
	case t.lane.ctx.Err() != nil:
		t.outcome = abandon
	case c.intake.Err() != nil:
		t.outcome = c.notBegun(t)
	default:
		return false
	}
	return true
}

// notBegun is the outcome of a task in a worker's hands whose lane goes, or which is drained. A held
// one is parked then.
func (c *consumer) notBegun(t *task) outcome {
	if c.hasHistory(t) {
		return hold
	}
	return abandon
}

// handleBatch is handle for a batch.
func (w *worker) handleBatch(batch []*task) {
	c := w.c
	tasks := w.beginBatch(batch)
	if len(tasks) == 0 {
		return
	}
	msgs := make([]*bus.Message, len(tasks))
	for i, t := range tasks {
		t.tries++
		msgs[i] = t.h.Delivery.Message
	}
	ctx, cancel := w.batchContext(tasks)
	defer cancel(nil)
	first := tasks[0].h.Delivery
	shared := bus.Delivery{Topic: first.Topic, Group: first.Group, Handler: first.Handler, Attempt: first.Attempt, FirstSeen: first.FirstSeen}
	h := engine.NewBatch(ctx, c.core.bus, shared, msgs)
	if tasks[0].route.joining != nil {
		engine.SetJoiner(h, driver.NewJoiner(c.join(tasks)))
	}
	w.now, w.handling = append(w.now[:0], tasks...), h
	start := w.clock()
	err := w.callBatch(h, tasks[0].route, msgs)
	errs := c.batchErrors(ctx, tasks, h, err)
	w.observed(h, shared, len(msgs), start, err)
	w.now, w.handling = w.now[:0], nil
	for i, t := range tasks {
		if errs[i] != nil && ctx.Err() != nil && !t.joined {
			t.stale = true // by another's lane, if not by its own
		}
		c.decide(t, errs[i])
		w.done = append(w.done, t)
	}
}

// beginBatch returns the tasks of a batch that may be handled; the others are done.
func (w *worker) beginBatch(batch []*task) []*task {
	c := w.c
	tasks := batch[:0]
	for _, t := range batch {
		if c.cannotBegin(t) {
			w.done = append(w.done, t)
			continue
		}
		tasks = append(tasks, t)
	}
	if c.cfg.guarantee != AtMostOnce {
		return tasks
	}
	settled, not := c.settleFirstOf(tasks)
	for _, t := range not {
		t.outcome = abandon
		w.done = append(w.done, t)
	}
	return settled
}

// batchErrors returns the error of each message of a batch whose call ended with err, after it has
// published the outputs of those that succeeded.
func (c *consumer) batchErrors(ctx context.Context, tasks []*task, h *bus.Handling, err error) []error {
	errs := bus.Outcomes(err, len(tasks))
	failed := map[string]bool{}
	for i, t := range tasks {
		errs[i] = spelled(errs[i])
		switch e := errs[i]; {
		case t.route.policy.ignores(e):
			errs[i] = bus.Ignore(e)
		case e != nil && !bus.IsIgnored(e):
			failed[t.h.Delivery.ID] = true
		}
	}
	ferr := c.publishBatchOutputs(ctx, tasks, h, failed)
	if ferr == nil {
		return errs
	}
	for i, e := range errs {
		if e != nil && !bus.IsIgnored(e) {
			continue
		}
		if oerr := engine.OutputError(ferr, tasks[i].h.Delivery.Message); oerr != nil {
			errs[i] = oerr
		}
	}
	return errs
}

// batchContext ends when any of the batch's lanes is lost, before its next owner is known. Another
// consumer repeats whatever the handler does after that.
func (w *worker) batchContext(tasks []*task) (context.Context, context.CancelCauseFunc) {
	c := w.c
	ctx, cancel := context.WithCancelCause(c.ctx)
	var lanes []*lane
	for _, t := range tasks {
		if !slices.Contains(lanes, t.lane) {
			lanes = append(lanes, t.lane)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range lanes {
		if l.lost() {
			cancel(context.Cause(l.ctx))
			continue
		}
		if l.batches == nil {
			l.batches = map[context.Context]context.CancelCauseFunc{}
		}
		l.batches[ctx] = cancel
	}
	return ctx, func(cause error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, l := range lanes {
			delete(l.batches, ctx)
		}
		cancel(cause)
	}
}

func (w *worker) clock() (now time.Time) {
	if len(w.c.core.hooks.handled) > 0 {
		now = time.Now()
	}
	return now
}

func (w *worker) observed(ctx context.Context, d bus.Delivery, n int, start time.Time, err error) {
	for _, hook := range w.c.core.hooks.handled {
		w.c.guarded("Handled", func() { hook.Handled(ctx, Handled{Delivery: d, Messages: n, Took: time.Since(start), Err: err}) })
	}
}

// call calls the handler under the route's timeout. A panic becomes an error.
func (w *worker) call(ctx context.Context, r *Route, m *bus.Message) (err error) {
	if r.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.timeout)
		defer cancel()
	}
	returned := false
	defer w.recovered(&returned, &err)
	err = r.handler.Handle(ctx, m)
	err = spelled(err)
	returned = true
	return err
}

func (w *worker) callBatch(ctx context.Context, r *Route, ms []*bus.Message) (err error) {
	if r.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, r.timeout)
		defer cancel()
	}
	returned := false
	defer w.recovered(&returned, &err)
	err = r.batch.HandleBatch(ctx, ms)
	err = spelled(err)
	returned = true
	return err
}

// spelled asks an error for its text and its kind where a panic is still the handler's: a nil pointer in an error is a common mistake.
func spelled(err error) (result error) {
	if err == nil {
		return nil
	}
	defer func() {
		if p := recover(); p != nil {
			result = &PanicError{Value: p, Stack: string(debug.Stack())}
		}
	}()
	_, _ = err.Error(), bus.IsIgnored(err)
	return err
}

// recovered is deferred around a call. A Goexit cannot be stopped here: the goroutine ends, and another goes on.
func (w *worker) recovered(returned *bool, err *error) {
	if *returned {
		return
	}
	if p := recover(); p != nil {
		*err = &PanicError{Value: p, Stack: string(debug.Stack())}
	} else {
		w.goexit = &PanicError{Value: ErrGoexit, Stack: string(debug.Stack())}
	}
}
