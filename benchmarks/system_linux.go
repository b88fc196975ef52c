package main

import (
	"syscall"
	"time"
)

// sleepFor sleeps in the kernel: a goroutine's sleep ends up to a millisecond late here, and one that looks at the clock instead takes a
// processor from the broker.
func sleepFor(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil) // a signal may wake it early
}

// settle has what was written before go to the disk: else it would be on its way during the next round, whose own writes wait behind it.
func settle() { syscall.Sync() }
