package conformance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// Way is one way for handlers to settle their messages.
type Way struct {
	// Options are the options of the subscription, above all the guarantee.
	Options []router.Option
	// Handler makes a handler that calls work for each message and settles the message when work
	// returns nil. The messages have the type "item" and the payload {} in JSON.
	Handler func(work Work) bus.Handler

	repeats  bool // a call may begin again, after a conflict of its transaction
	staysPut bool // messages that wait for a retry are lost with their member
}

// Work handles one message in the context of its handler.
type Work func(ctx context.Context, m *bus.Message) error

// These checks combine failures, delays, cancellations, replays and a change of members in each
// guarantee and each way to settle. A fault in one combination may be invisible in the others. They
// count calls, outcomes, ends and outputs and read the log, because effects alone may be right by
// chance.
var wayChecks = []check{
	{"ways/at-least-once", Way{Handler: eachMessage}.check},
	{"ways/at-least-once-batch", Way{Handler: inBatches}.check},
	{"ways/at-most-once", atMostOnce(eachMessage)},
	{"ways/at-most-once-batch", atMostOnce(inBatches)},
	{"ways/exactly-once", transactional(eachMessage)},
	{"ways/exactly-once-batch", transactional(inBatches)},
}

func eachMessage(work Work) bus.Handler { return bus.HandlerFunc(work) }

func inBatches(work Work) bus.Handler {
	return batchFunc(func(ctx context.Context, ms []*bus.Message) error {
		errs := make([]error, len(ms))
		for i, m := range ms {
			errs[i] = work(ctx, m)
		}
		return bus.PerMessage(errs)
	})
}

func atMostOnce(handler func(Work) bus.Handler) func(e *env) {
	return Way{Options: []router.Option{router.Guarantee(router.AtMostOnce)}, Handler: handler, staysPut: true}.check
}

func transactional(handler func(Work) bus.Handler) func(e *env) {
	return func(e *env) {
		if !e.capabilities(e.bus()).Transactions {
			e.lacking("publishes what handlers emit beside the settlement, not in one transaction with it")
		}
		Way{Options: []router.Option{router.Guarantee(router.ExactlyOnce)}, Handler: handler}.check(e)
	}
}

// RunWay runs the check of the theme "ways" for handlers with a way of their own to settle, such as
// those of package outbox.
func RunWay(t *testing.T, open Open, w Way) {
	t.Helper()
	w.repeats = true
	r := check{t.Name(), w.check}.verify(t.Context(), open, Options{})
	if r.Status != Pass {
		t.Errorf("%s: %s", r.Status, r.Detail)
	}
}

const (
	wayKeys = 16
	wayEach = 12 // messages of each key
)

// wayFailures returns the results of the first tries of a key's message number i. The next try
// succeeds.
func wayFailures(i int) []error {
	soon := bus.RetryAfter(errors.New("soon"), 20*time.Millisecond)
	later := bus.RetryAfter(errors.New("later"), 1100*time.Millisecond) // the message is put aside at the broker
	switch i {
	case 2:
		return []error{soon}
	case 4: // put aside twice
		return []error{later, later}
	case 5: // put aside behind the message before, and again by itself
		return []error{later}
	case 8:
		return []error{soon, later, soon}
	case wayEach - 1: // poisoned; it succeeds when it is replayed
		return []error{bus.Permanent(errors.New("refused"))}
	}
	return nil
}

// wayTrial is one run of a check.
type wayTrial struct {
	*ledger
	way            Way
	in, out, group string
	log            strictLog
	outputs        *ledger

	counts struct {
		sync.Mutex
		tries              map[string]int  // by message
		last               map[string]told // by message, of tries of their own
		calls, ends        int             // of work
		succeeded, handled int             // by the end of the call, and by the hook
		successes          int             // calls of OnSuccess
	}
}

// told is the number of a try, and the context of its handler, which ends with the lane.
type told struct {
	number int
	ctx    context.Context
}

func (w Way) check(e *env) {
	b := e.bus()
	e.parks(b)
	t := &wayTrial{ledger: e.ledger(), way: w, in: e.name("in"), out: e.name("out"), group: e.name("g")}
	t.counts.tries, t.counts.last = map[string]int{}, map[string]told{}
	member := t.member(b)
	refused := t.publish(b)
	t.outputs = t.shared()
	outputs := router.New(b, e.name("outputs"))
	outputs.HandleFunc(t.out, t.outputs.handler(nil))
	e.run(outputs)
	next := b
	if e.capabilities(b).Durable {
		next = e.bus()
	}
	if !w.staysPut {
		t.waitFor(func() int { return len(t.published) / 2 })
		second := t.member(next)
		member.drain()
		member = second
	}
	t.waitFor(func() int { return len(t.published) - refused })
	t.replay(b, refused)
	t.complete()
	t.outputs.complete()
	member.drain()
	t.balance()
	member = t.member(next) // gets no message, after a clean stop
	e.publish(b, t.in, t.items(t.each(0, wayKeys))...)
	t.complete()
	t.outputs.complete()
	member.drain()
	t.exact()
	t.outputs.exact()
	t.balance()
	for _, record := range t.log.unexpected() {
		e.errorf("the router logged %s", record)
	}
}

// publish returns the number of messages that handlers refuse until they are replayed.
func (t *wayTrial) publish(b *bus.Bus) (refused int) {
	for range wayEach {
		t.e.publish(b, t.in, t.items(t.each(0, wayKeys))...)
	}
	t.e.publish(b, t.in, t.items(t.make(20, 0))...)
	late := t.items(t.each(wayKeys, wayKeys+4)) // keys of their own: others of its key may overtake a delayed message
	for i, m := range late {
		bus.WithDelay(1500 * time.Millisecond)(m)
		gone := &bus.Message{ID: fmt.Sprint("gone-", i), Key: m.Key, Type: m.Type, ContentType: m.ContentType, Payload: m.Payload}
		bus.WithDelay(2500 * time.Millisecond)(gone)
		t.e.publish(b, t.in, m, gone)
		t.e.must(b.Publish(t.e.ctx, t.in, bus.Cancellation{Key: gone.Key, ID: gone.ID}), "cancel")
	}
	return wayKeys
}

// items makes messages such as a typed handler takes.
func (t *wayTrial) items(msgs []*bus.Message) []*bus.Message {
	for _, m := range msgs {
		m.Type, m.ContentType, m.Payload = "item", "application/json", []byte("{}")
	}
	return msgs
}

// member starts one more member of the group.
func (t *wayTrial) member(b *bus.Bus) *running {
	r := router.New(b, t.group, router.Logger(slog.New(&t.log)), router.Hooks(t), router.Workers(8))
	r.Handle(t.in, t.way.Handler(t.work), t.way.Options...)
	return t.e.run(r)
}

func (t *wayTrial) work(ctx context.Context, m *bus.Message) error {
	t.enter(m)
	err := t.try(ctx, m)
	t.leave(m)
	return err
}

func (t *wayTrial) try(ctx context.Context, m *bus.Message) error {
	t.mu.Lock()
	number, key := t.published[m.ID], t.keyOf[m.ID]
	t.mu.Unlock()
	c := &t.counts
	c.Lock()
	defer c.Unlock()
	c.calls++
	c.tries[m.ID]++
	try := c.tries[m.ID]
	err := errors.Join(
		bus.Emit(ctx, t.out, &bus.Message{ID: m.ID, Key: m.Key}, bus.WithCause(m)),
		bus.OnSuccess(ctx, func(context.Context) error {
			c.Lock()
			defer c.Unlock()
			c.successes++
			return nil
		}),
		bus.OnEnd(ctx, func(_ context.Context, succeeded func(*bus.Message) bool) error {
			ok := succeeded(m)
			if ok {
				t.succeed(m)
			}
			c.Lock()
			defer c.Unlock()
			if c.ends++; ok {
				c.succeeded++
			}
			return nil
		}))
	if err != nil {
		return err
	}
	failures := wayFailures(number)
	if key == "" || number >= wayEach || try > len(failures) {
		return nil
	}
	if d := bus.DeliveryFrom(ctx); d.ID == m.ID {
		before := c.last[m.ID]
		c.last[m.ID] = told{d.Attempt, ctx}
		if next := before.number + 1; d.Attempt > next || d.Attempt < next && !before.lost() {
			t.e.errorf("try %d of %s is told to be number %d, after number %d", try, m.ID, d.Attempt, before.number)
		}
	}
	return failures[try-1]
}

// lost says whether the lane of a try was lost since. Then its next owner may not know of the try.
// A hand-over keeps the number: the context of a lane that was handed over has no cause beside
// ErrLaneLost itself.
func (t told) lost() bool {
	if t.ctx == nil {
		return false
	}
	cause := context.Cause(t.ctx)
	return errors.Is(cause, bus.ErrLaneLost) && cause.Error() != bus.ErrLaneLost.Error()
}

// Handled implements router.HandledHook.
func (t *wayTrial) Handled(_ context.Context, h router.Handled) {
	t.counts.Lock()
	defer t.counts.Unlock()
	for _, err := range bus.Outcomes(h.Err, h.Messages) {
		if err == nil {
			t.counts.handled++
		}
	}
}

// replay waits until all refused messages are poisoned, and replays them.
func (t *wayTrial) replay(b *bus.Bus, refused int) {
	t.e.wait("poison entries", func() bool { return len(t.e.poisoned(b, t.group)) >= refused })
	for _, entry := range t.e.poisoned(b, t.group) {
		if entry.Failure.Class != "permanent" || entry.Failure.Text != "refused" || entry.Failure.Attempts != 1 || t.published[entry.Message.ID] != wayEach-1 {
			t.e.errorf("poisoned is message %d of %s: %+v", t.published[entry.Message.ID], entry.Message.Key, entry.Failure)
		}
	}
	q, err := poison.Open(t.e.ctx, b, t.group)
	t.e.must(err, "open the poison queue")
	result, err := q.Replay(t.e.ctx, poison.Filter{}, poison.Options{})
	t.e.must(err, "replay")
	if result.Done != refused {
		t.e.errorf("%d messages were replayed, want %d", result.Done, refused)
	}
}

// balance compares all counts. Call it when no member is at work.
func (t *wayTrial) balance() {
	t.mu.Lock()
	published := len(t.published)
	t.mu.Unlock()
	c := &t.counts
	c.Lock()
	defer c.Unlock()
	failures := 0
	for i := range wayEach {
		failures += wayKeys * len(wayFailures(i))
	}
	if c.calls < published+failures || c.calls > published+failures && !t.way.repeats || c.ends != c.calls {
		t.e.errorf("%d messages and %d failures, but %d calls, of which %d were told their end", published, failures, c.calls, c.ends)
	}
	if c.succeeded != published || c.handled != published {
		t.e.errorf("%d messages, but %d calls were told of success, and the hook of %d", published, c.succeeded, c.handled)
	}
	if c.successes < published {
		t.e.errorf("%d messages, but OnSuccess was called %d times", published, c.successes)
	}
}

// strictLog notes the records of level WARN and ERROR, except for those about wanted failures.
type strictLog struct {
	mu      sync.Mutex
	records []string
}

// Enabled implements slog.Handler.
func (l *strictLog) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle implements slog.Handler.
func (l *strictLog) Handle(_ context.Context, r slog.Record) error {
	for _, expected := range []string{"handler failed; the message is tried again", "message poisoned"} {
		if strings.HasPrefix(r.Message, expected) {
			return nil
		}
	}
	text := fmt.Sprintf("%v %q", r.Level, r.Message)
	r.Attrs(func(a slog.Attr) bool {
		text += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.records = append(l.records, text)
	return nil
}

// WithAttrs implements slog.Handler. A logger's attributes are not needed.
func (l *strictLog) WithAttrs([]slog.Attr) slog.Handler { return l }

// WithGroup implements slog.Handler.
func (l *strictLog) WithGroup(string) slog.Handler { return l }

func (l *strictLog) unexpected() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.records
}
