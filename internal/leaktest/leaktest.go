// Package leaktest fails a package's tests if they leave goroutines behind. It needs the standard
// library only.
//
// It is weaker than go.uber.org/goleak: it looks once, after all tests of the package, so it does
// not name the test that leaked, and it takes no exceptions. Modules that have dependencies anyway
// use goleak.
package leaktest

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// patience is the time that goroutines have to end after the last test.
const patience = 2 * time.Second

// Main runs the tests of m and exits. Call it from TestMain. The tests fail if a goroutine is left
// two seconds after the last test.
func Main(m interface{ Run() int }) {
	code := m.Run()
	if code == 0 {
		if left := remaining(patience); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "leaktest: the tests left %d goroutines:\n\n%s\n", len(left), strings.Join(left, "\n\n"))
			code = 1
		}
	}
	os.Exit(code)
}

// remaining returns the stacks of the goroutines that still run after the time limit, at best none.
func remaining(limit time.Duration) []string {
	for end := time.Now().Add(limit); ; time.Sleep(time.Millisecond) { // a goroutine's end has no event
		if left := others(); len(left) == 0 || time.Now().After(end) {
			return left
		}
	}
}

// others returns the stack of each goroutine but the caller's and those of the test binary itself.
func others() []string {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	stacks := strings.Split(strings.TrimSpace(string(buf[:n])), "\n\n")[1:] // the first is the caller's
	return slices.DeleteFunc(stacks, func(stack string) bool {
		return slices.ContainsFunc(harness, func(f string) bool { return strings.Contains(stack, f) })
	})
}

// harness lists functions that run in goroutines of package testing and of the runtime.
var harness = []string{
	"testing.RunTests(",
	"testing.(*T).Run(",
	"testing.runFuzzing(",
	"os/signal.signal_recv(",
	"os/signal.loop(",
	"runtime.ensureSigM(",
	"runtime.ReadTrace(",
	"runtime/pprof.profileWriter(",
}
