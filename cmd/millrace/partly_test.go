package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/poison"
)

// breaking is a memory bus that breaks down in the midst of a replay.
type breaking struct {
	driver.Driver
	injects int
}

func (d *breaking) Inject(ctx context.Context, topic, group string, ps []driver.Parking) error {
	if d.injects++; d.injects > 1 {
		return errors.New("the broker is away")
	}
	return d.Driver.(driver.Injector).Inject(ctx, topic, group, ps)
}

func init() {
	driver.Register("breaking", func(_ context.Context, p *driver.Params) (driver.Driver, error) {
		b, err := memory.Open(memory.Config{Name: p.URL().Opaque})
		if err != nil {
			return nil, err
		}
		return &breaking{Driver: driver.Of(b)}, p.Err()
	})
}

// TestPoisonPartly: a replay that breaks down reports its progress, by its exit code too, and the
// rest can be replayed.
func TestPoisonPartly(t *testing.T) {
	name := bus.NewID()
	b, err := bus.Open(t.Context(), "memory:"+name)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s, err := b.Driver().Subscribe(t.Context(), bus.Subscription{Topic: "orders", Group: "billing", InFlight: 1, Bytes: 1}, ignorant{}) // so that there is such a group
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(context.Background()) }()
	store, err := driver.Of(b).Poison(t.Context(), "billing")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 150 {
		e := driver.PoisonEntry{ID: fmt.Sprint(i), Message: &bus.Message{ID: fmt.Sprint(i)}, Topic: "orders", Group: "billing", Time: time.Now()}
		if err := store.Put(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr []string
	}{
		{"replay --url breaking:" + name + " --all", exitPartly, []string{"100 of 150 entries replayed"}, []string{"100 of 150\n", "the broker is away"}},
		{"replay --url breaking:" + name + " --all --expect 150", exitFail, nil, []string{"50 entries match, and 150 were expected: nothing was done"}},
		{"replay --url memory:" + name + " --all --json", exitOK, []string{`{"matched":50,"done":50}`}, []string{"50 of 50\n"}},
		{"replay --url memory:" + name + " --all", exitOK, []string{"0 of 0 entries replayed"}, nil},
	} {
		var stdout, stderr strings.Builder
		code := run(t.Context(), strings.Fields("poison "+tc.args+" --group billing"), &stdout, &stderr)
		if code != tc.code {
			t.Errorf("%s: exit %d, want %d", tc.args, code, tc.code)
		}
		for _, want := range tc.stdout {
			if !strings.Contains(stdout.String(), want) {
				t.Errorf("%s: no %q in %s", tc.args, want, stdout.String())
			}
		}
		for _, want := range tc.stderr {
			if !strings.Contains(stderr.String(), want) {
				t.Errorf("%s: no %q in %s", tc.args, want, stderr.String())
			}
		}
	}
}

// ignorant takes no notice of lanes.
type ignorant struct{}

func (ignorant) Assigned([]bus.Lane)                  {}
func (ignorant) Revoking(context.Context, []bus.Lane) {}
func (ignorant) Lost([]bus.Lane, error)               {}

// fullDisk takes nothing.
type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space left") }

// A result that cannot be printed is a failure for the program that waits for it.
func TestResultThatCannotBePrinted(t *testing.T) {
	c := poisonCall{asJSON: true, stdout: fullDisk{}}
	if code, err := c.result("dropped", poison.Result{Matched: 1, Done: 1}, nil); code == exitOK || err == nil || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("exit code %d, %v", code, err)
	}
}
