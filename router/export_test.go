package router

import (
	"log/slog"
	"testing"
)

// LogTo gives a router a log that has the default one.
func LogTo(r *Router, l *slog.Logger) {
	if r.core.log == slog.Default() {
		r.core.log = l
	}
}

// Consumers is how many consumers a router holds.
func Consumers(r *Router) int {
	r.core.mu.Lock()
	defer r.core.mu.Unlock()
	return len(r.core.consumers)
}

// SetMaxParked changes the bound of what is parked for the length of a test.
func SetMaxParked(t *testing.T, n int) {
	old := maxParked
	maxParked = n
	t.Cleanup(func() { maxParked = old })
}
