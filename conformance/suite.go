// Package conformance proves that a broker's driver keeps the contract of package bus, on the
// broker itself.
//
// A driver's author calls it in one line:
//
//	func TestConformance(t *testing.T) { conformance.Run(t, conformance.URL("pigeon://localhost:9")) }
//
// Anyone with a broker runs the same checks by `millrace conformance --url URL`.
//
// The checks keep ledgers: every message published, with its key and number, and every call of a
// handler. So they see exactly any loss, repeat, wrong order, overlap and leakage between topics.
// Every run uses topics and groups of its own, which it leaves behind on the broker.
package conformance

import (
	"context"
	"fmt"
	"iter"
	"regexp"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Open opens a bus on the broker under test. The suite calls it for every bus that it needs. All of
// them must reach the same messages.
type Open func(ctx context.Context) (*bus.Bus, error)

// URL returns an Open for a registered driver. A "memory:" URL must have a name, so that its buses
// share their messages.
func URL(url string) Open {
	return func(ctx context.Context) (*bus.Bus, error) { return bus.Open(ctx, url) }
}

// Status is the outcome of a check.
type Status string

const (
	// Pass: the driver passed the check.
	Pass Status = "pass"
	// Fail: the driver failed the check.
	Fail Status = "fail"
	// Lacking: the driver itself says that it lacks this ability. This is no failure.
	Lacking Status = "lacking"
)

// Result is the outcome of one check.
type Result struct {
	Test    string  `json:"test"`
	Status  Status  `json:"status"`
	Detail  string  `json:"detail,omitempty"`
	Seconds float64 `json:"seconds"`
}

// Options chooses and bounds the checks. The zero value runs all.
type Options struct {
	// Run chooses checks by name. Defaults to all.
	Run *regexp.Regexp
	// Timeout bounds each check. Defaults to 60 s. Within that, the checks of the theme load may
	// not reach their full number of messages on a slow machine.
	Timeout time.Duration
}

// check is one claim to prove. run reports through e, as a test does through its T.
type check struct {
	name string
	run  func(e *env)
}

// Checks lists the names of all checks in the order of their runs.
func Checks() []string {
	var names []string
	for _, c := range checks() {
		names = append(names, c.name)
	}
	return names
}

func checks() []check {
	var all []check
	for _, theme := range [][]check{roundTripChecks, publishChecks, orderChecks, groupChecks, failureChecks, typeChecks, boundChecks, lifecycleChecks, memberChecks, poisonChecks, parkingChecks, delayChecks, loadChecks, requestChecks, transactionChecks, wayChecks} {
		all = append(all, theme...)
	}
	return all
}

// Verify runs the checks and yields each result as soon as it has it.
func Verify(ctx context.Context, open Open, o Options) iter.Seq[Result] {
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	return func(yield func(Result) bool) {
		for _, c := range checks() {
			if o.Run != nil && !o.Run.MatchString(c.name) {
				continue
			}
			if ctx.Err() != nil || !yield(c.verify(ctx, open, o.Timeout)) {
				return
			}
		}
	}
}

func (c check) verify(ctx context.Context, open Open, timeout time.Duration) Result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := time.Now()
	e := newEnv(ctx, open)
	e.do(c.run)
	status, detail := e.outcome()
	return Result{Test: c.name, Status: status, Detail: detail, Seconds: time.Since(start).Seconds()}
}

// Run runs the checks as subtests of t.
func Run(t *testing.T, open Open) {
	t.Helper()
	for _, c := range checks() {
		t.Run(c.name, func(t *testing.T) {
			r := c.verify(t.Context(), open, time.Minute)
			switch r.Status {
			case Fail:
				t.Error(r.Detail)
			case Lacking, Pass:
				if r.Detail != "" {
					t.Log(r.Detail)
				}
			}
		})
	}
}

func (r Result) String() string {
	return fmt.Sprintf("%-7s %-36s %6.2fs  %s", r.Status, r.Test, r.Seconds, r.Detail)
}
