package main

import (
	"syscall"
	"time"
)

// sleepFor sleeps in the kernel: a goroutine's sleep ends up to a millisecond late here, and one
// that looks at the clock instead takes a processor from the broker.
func sleepFor(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil) // a signal may wake it early
}

// settle waits until earlier writes are on the disk. Otherwise they would be on their way during
// the next round, and its own writes would wait behind them.
func settle() { syscall.Sync() }
