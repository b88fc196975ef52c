package conformance_test

import (
	"context"
	"iter"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/conformance"
)

// defect is a driver broken on purpose, with the checks that must notice.
type defect struct {
	name    string
	make    func() *broken
	noticed []string
	long    bool // the checks take more than a few seconds
}

// verify runs some of the checks against the driver, for so long each.
func (b *broken) verify(t *testing.T, checks []string, timeout time.Duration) iter.Seq[conformance.Result] {
	open := func(context.Context) (*bus.Bus, error) {
		m, err := memory.Open(memory.Config{Name: t.Name()})
		if err != nil {
			return nil, err
		}
		one := *b
		one.Driver = driver.Of(m)
		return bus.New(&one), nil
	}
	return conformance.Verify(t.Context(), open, conformance.Options{
		Run: regexp.MustCompile("^(" + strings.Join(checks, "|") + ")$"), Timeout: timeout, RawPoison: putUnreadable, ParkedRoom: b.room,
	})
}

// TestBrokenDriversAreNoticed: a check is worth something if it has been seen to fail.
func TestBrokenDriversAreNoticed(t *testing.T) {
	defer close(leaked)
	var mu sync.Mutex
	failedOnce := map[string]bool{}
	t.Run("defects", func(t *testing.T) {
		for _, d := range slices.Concat(messageDefects, deliveryDefects, poisonDefects, parkingDefects, fullLaneDefects, abilityDefects, truthDefects) {
			t.Run(d.name, func(t *testing.T) {
				t.Parallel()
				timeout := 3 * time.Second
				if d.long {
					timeout = 30 * time.Second
				}
				seen := 0
				for r := range d.make().verify(t, d.noticed, timeout) {
					seen++
					if r.Status != conformance.Fail {
						t.Errorf("%s: %s %s", r.Test, r.Status, r.Detail)
						continue
					}
					t.Log(r.Test, r.Detail)
					mu.Lock()
					failedOnce[r.Test] = true
					mu.Unlock()
				}
				if seen != len(d.noticed) {
					t.Errorf("%d of the checks %v exist", seen, d.noticed)
				}
			})
		}
	})
	for _, name := range conformance.Checks() {
		if !failedOnce[name] {
			t.Errorf("check %s was not seen to fail against any broken driver", name)
		}
	}
}

// TestWholeDriversPass: the drivers around memory pass if nothing is broken.
func TestWholeDriversPass(t *testing.T) {
	transacts := &broken{caps: claimTransactions, source: func(s *brokenSource) bus.Source { return &settlesFirst{brokenSource: s} }}
	for _, c := range []struct {
		check string
		b     *broken
	}{
		{"abilities/claimed", &broken{}},
		{"abilities/claimed", transacts},
		{"poison/unreadable", &broken{}},
		{"parking/full-lane", &broken{}},
		{"parking/full-lane", narrow(wholeLane)},
	} {
		t.Run(c.check, func(t *testing.T) {
			t.Parallel()
			for r := range c.b.verify(t, []string{c.check}, time.Minute) {
				if r.Status != conformance.Pass {
					t.Errorf("%s: %s", r.Status, r.Detail)
				}
			}
		})
	}
}
