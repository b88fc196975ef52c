// Package ratelog keeps floods out of a log: of records of one kind it writes the first at once, and
// then at most one a second, with the number of those left out.
package ratelog

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Every is how long a Log says nothing of a kind after a record of it.
const Every = time.Second

// Log writes to a logger. Safe for concurrent use.
type Log struct {
	log    *slog.Logger
	mu     sync.Mutex
	silent map[kind]*silence
}

// kind tells records apart: by their text, and by a value of the caller's.
type kind struct {
	text string
	of   any
}

// silence counts the records that were left out since the last one of a kind.
type silence struct {
	left  int
	level slog.Level
	args  []any // of the newest
	end   *time.Timer
}

// New makes a Log that writes to log.
func New(log *slog.Logger) *Log {
	return &Log{log: log, silent: map[kind]*silence{}}
}

// Tell writes a record, or counts it for a later one. Records with equal texts and equal values of are of one kind;
// of must be comparable. The arguments are those of [slog.Logger.Log]. Those of the newest record are
// kept up to a second.
func (l *Log) Tell(level slog.Level, text string, of any, args ...any) {
	if !l.log.Enabled(context.Background(), level) {
		return
	}
	k := kind{text, of}
	l.mu.Lock()
	if s := l.silent[k]; s != nil {
		s.left++
		s.level, s.args = level, args
		l.mu.Unlock()
		return
	}
	l.silence(k)
	l.mu.Unlock()
	l.log.Log(context.Background(), level, text, args...)
}

// silence begins a silence about a kind. The caller holds mu.
func (l *Log) silence(k kind) {
	s := &silence{}
	l.silent[k] = s
	s.end = time.AfterFunc(Every, func() { l.catchUp(k, s) })
}

// catchUp ends a silence. If records were left out, it writes the newest, and another silence
// begins.
func (l *Log) catchUp(k kind, s *silence) {
	l.mu.Lock()
	if l.silent[k] != s { // Flush came first, and has it
		l.mu.Unlock()
		return
	}
	if s.left == 0 {
		delete(l.silent, k)
	} else {
		l.silence(k)
	}
	l.mu.Unlock()
	l.write(k, s)
}

// Flush writes at once for the records that were left out, and ends all silences. Call it when no more records will
// come.
func (l *Log) Flush() {
	l.mu.Lock()
	all := l.silent
	l.silent = map[kind]*silence{}
	l.mu.Unlock()
	for k, s := range all {
		s.end.Stop()
		l.write(k, s)
	}
}

// write writes the newest of the records that were left out, if there are any.
func (l *Log) write(k kind, s *silence) {
	if s.left == 0 {
		return
	}
	if more := s.left - 1; more > 0 {
		s.args = append(s.args, "more", more)
	}
	l.log.Log(context.Background(), s.level, k.text, s.args...)
}
