package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"
)

// progress shows how far the run is: on a terminal one line that is written over, elsewhere a line
// now and then.
type progress struct {
	w        io.Writer
	terminal bool
	total    int
	began    time.Time
	already  int // done by an earlier run
}

func newProgress(w io.Writer, total, already int) *progress {
	p := &progress{w: w, total: total, already: already, began: time.Now()}
	if f, ok := w.(*os.File); ok {
		if info, err := f.Stat(); err == nil {
			p.terminal = info.Mode()&os.ModeCharDevice != 0
		}
	}
	return p
}

// show runs until ctx ends. done tells how many orders are through everything.
func (p *progress) show(ctx context.Context, done func() int) {
	every := 2 * time.Second
	if p.terminal {
		every = 200 * time.Millisecond
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			p.print(done())
		case <-ctx.Done():
			p.print(done())
			if p.terminal {
				fmt.Fprintln(p.w)
			}
			return
		}
	}
}

func (p *progress) print(done int) {
	rate := float64(done-p.already) / time.Since(p.began).Seconds()
	eta := "?"
	if rate > 0 {
		eta = time.Duration(float64(p.total-done) / rate * float64(time.Second)).Round(time.Second).String()
	}
	line := fmt.Sprintf("%6d of %d orders  %3d %%  %7.0f/s  ETA %s", done, p.total, 100*done/p.total, rate, eta)
	if p.terminal {
		fmt.Fprintf(p.w, "\r\x1b[K%s", line)
		return
	}
	fmt.Fprintln(p.w, line)
}
