package router_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// checkRound checks that nothing stands still but for what waits in the poison queue.
func (w *world) checkRound() {
	waits := map[string]bool{} // by message: with its key, or without
	for _, e := range w.broker.entries() {
		waits[e.Message.ID] = waits[e.Message.ID] || e.Waits
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, ns := range w.byKey {
		for _, n := range ns {
			withKey, ok := waits[n.id]
			if withKey {
				break
			}
			if n.handled == 0 && !n.dropped && !ok && w.plan.guarantee != router.AtMostOnce {
				w.errorf("%s stands still: %+v", n.id, *n)
				break
			}
		}
	}
}

// checkStates checks that each task is where its state says.
func (w *world) checkStates(members []*member, rest bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range members {
		if m.router == nil {
			continue
		}
		if err := router.CheckStates(m.router, rest && m.stop != nil); err != nil {
			w.errorf("member %d: %v", m.name, err)
		}
	}
}

// checkEnd checks that nothing is missing, and nothing left.
func (w *world) checkEnd(r *router.Router, q *poison.Queue) {
	if n, err := q.Count(w.t.Context(), poison.Filter{}); n != 0 || err != nil {
		w.t.Errorf("seed %d, %+v: %d poison entries are left, %v", w.seed, w.plan, n, err)
	}
	if h := r.Health(); h.Err() != nil || h.Routes[0].InFlight != 0 {
		w.t.Errorf("seed %d, %+v: health is %+v", w.seed, w.plan, h)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for id, n := range w.messages {
		switch {
		case n.handled == 0 && !n.dropped && !n.cancelled && w.plan.guarantee != router.AtMostOnce:
			w.errorf("%s was lost: %+v", id, *n)
		case n.handled > 0 && n.outputs == 0 && !n.dropped && w.plan.guarantee == router.ExactlyOnce:
			w.errorf("%s was handled, and its output was lost: %+v", id, *n)
		case n.cancelled && n.handled > 0 && w.plan.guarantee != router.AtMostOnce: // the cancellation may be lost, too
			w.errorf("%s was cancelled, and handled", id)
		case w.plan.calm && n.handled > 1:
			w.errorf("%s was handled %d times", id, n.handled)
		}
	}
}

// event is a line of a program's history; it is spelled only for a failure.
type event struct {
	at     time.Time
	format string
	args   []any
}

func (e event) String() string {
	return e.at.Format("02 15:04:05.000 ") + fmt.Sprintf(e.format, e.args...)
}

// say keeps what happened, for the report of a failure. Called with the lock held.
func (w *world) say(format string, args ...any) {
	w.history = append(w.history, event{time.Now(), format, args})
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.say(format, args...)
}

func (w *world) fail(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.errorf(format, args...)
}

func (w *world) errorf(format string, args ...any) {
	w.say("FAILED: "+format, args...)
	w.t.Errorf("seed %d, %+v: "+format, append([]any{w.seed, w.plan}, args...)...)
}

// Write implements io.Writer for the router's log.
func (w *world) Write(line []byte) (int, error) {
	w.note("%s", string(line[:len(line)-1]))
	return len(line), nil
}

// expected are the warnings and errors that programs cause.
var expected = []string{
	"handler failed", "not available; consuming pauses", "message poisoned", "the poison queue cannot be written to", "receiving failed", "settling failed",
	"parking failed", "fetching parked messages failed", "fetching cancelled messages", "committing failed", "the broker does not park a message",
	"could not be settled", "could not be parked", "its entry is still in the poison queue",
}

// surprises is the router's log: a warning or an error that no program causes fails it.
type surprises struct{ w *world }

func (s surprises) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }
func (s surprises) WithAttrs([]slog.Attr) slog.Handler               { return s }
func (s surprises) WithGroup(string) slog.Handler                    { return s }

func (s surprises) Handle(_ context.Context, r slog.Record) error {
	if !slices.ContainsFunc(expected, func(text string) bool { return strings.Contains(r.Message, text) }) {
		s.w.fail("the log has %v %s", r.Level, r.Message)
	}
	return nil
}
