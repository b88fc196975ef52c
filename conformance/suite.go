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
	"cmp"
	"context"
	"fmt"
	"iter"
	"regexp"
	"slices"
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
	// ParkedRoom is the number of messages that can be parked in a lane, if the buses under test
	// were opened with a low bound. By default the suite puts a low bound of its own in front of
	// the driver.
	ParkedRoom int
	// RawPoison appends a record of these bytes to the group's poison store, past the driver, which
	// cannot read the record. The store exists and has entries. nil: the suite cannot do this, and
	// the check that needs it is lacking.
	RawPoison func(ctx context.Context, b *bus.Bus, group string, record []byte) error
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
	for _, theme := range [][]check{roundTripChecks, publishChecks, orderChecks, groupChecks, failureChecks, typeChecks, boundChecks, lifecycleChecks, memberChecks, poisonChecks, parkingChecks, delayChecks, loadChecks, requestChecks, transactionChecks, truthChecks, wayChecks, abilityChecks} {
		all = append(all, theme...)
	}
	return all
}

// Verify runs the checks and yields each result as soon as it has it.
func Verify(ctx context.Context, open Open, o Options) iter.Seq[Result] {
	return func(yield func(Result) bool) {
		for _, c := range o.chosen() {
			if ctx.Err() != nil || !yield(c.verify(ctx, open, o)) {
				return
			}
		}
	}
}

// chosen returns the checks to run.
func (o Options) chosen() []check {
	return slices.DeleteFunc(checks(), func(c check) bool { return o.Run != nil && !o.Run.MatchString(c.name) })
}

func (c check) verify(ctx context.Context, open Open, o Options) Result {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(o.Timeout, time.Minute))
	defer cancel()
	start := time.Now()
	e := newEnv(ctx, open, o)
	e.do(c.run)
	status, detail := e.outcome()
	return Result{Test: c.name, Status: status, Detail: detail, Seconds: time.Since(start).Seconds()}
}

// Run runs all checks as subtests of t.
func Run(t *testing.T, open Open) {
	t.Helper()
	RunWith(t, open, Options{})
}

// RunWith runs checks as subtests of t.
func RunWith(t *testing.T, open Open, o Options) {
	t.Helper()
	for _, c := range o.chosen() {
		t.Run(c.name, func(t *testing.T) {
			r := c.verify(t.Context(), open, o)
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
