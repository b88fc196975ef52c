package router

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// complaintEvery is how long the log is silent about failures of a kind, after it has told of one.
const complaintEvery = time.Second

// complaints writes failures of messages to the log: the first of a kind at once, and then at most
// one a second, with the number of those left out. A flood of bad messages must not become a flood
// of lines. Hooks and counters tell of every failure.
type complaints struct {
	log  *slog.Logger
	mu   sync.Mutex
	told map[complaintKind]*complaint // in the last second
}

type complaintKind struct{ text, handler, class string }

// complaint is what was left out of the log since the last line of its kind.
type complaint struct {
	more  int
	level slog.Level
	args  []any // of the newest
}

func newComplaints(log *slog.Logger) *complaints {
	return &complaints{log: log, told: map[complaintKind]*complaint{}}
}

// tell logs a failure, or counts it for a later line.
func (c *complaints) tell(level slog.Level, kind complaintKind, args ...any) {
	if !c.log.Enabled(context.Background(), level) {
		return
	}
	c.mu.Lock()
	if was := c.told[kind]; was != nil {
		was.more++
		was.level, was.args = level, args
		c.mu.Unlock()
		return
	}
	c.told[kind] = &complaint{}
	time.AfterFunc(complaintEvery, func() { c.catchUp(kind) })
	c.mu.Unlock()
	c.write(level, kind, args)
}

// catchUp ends the silence about a kind. If failures were left out, it tells of the newest, and
// another silence begins.
func (c *complaints) catchUp(kind complaintKind) {
	c.mu.Lock()
	was := c.told[kind]
	if was.more == 0 {
		delete(c.told, kind)
		c.mu.Unlock()
		return
	}
	c.told[kind] = &complaint{}
	time.AfterFunc(complaintEvery, func() { c.catchUp(kind) })
	c.mu.Unlock()
	if rest := was.more - 1; rest > 0 {
		was.args = append(was.args, "more", rest)
	}
	c.write(was.level, kind, was.args)
}

func (c *complaints) write(level slog.Level, kind complaintKind, args []any) {
	args = append([]any{"handler", kind.handler, "class", kind.class}, args...)
	c.log.Log(context.Background(), level, kind.text, args...)
}
