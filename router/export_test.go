package router

import "testing"

// SetMaxParked changes the bound of what is parked for the length of a test.
func SetMaxParked(t *testing.T, n int) {
	old := maxParked
	maxParked = n
	t.Cleanup(func() { maxParked = old })
}
