// Package epoch tells ownerships of lanes apart.
package epoch

import (
	"sync/atomic"
	"time"
)

// Next returns an epoch for a new ownership. Epochs grow, and no two calls return the same one.
// They begin at the process's start time, so ownerships of different runs differ, too. Safe for
// concurrent use.
func Next() uint64 { return epochs.Add(1) }

var epochs = func() *atomic.Uint64 {
	var e atomic.Uint64
	e.Store(uint64(time.Now().UnixNano()))
	return &e
}()
