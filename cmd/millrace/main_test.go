package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/conformance"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

func TestCommands(t *testing.T) {
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"", exitUsage, "", "usage: millrace"},
		{"help", exitOK, "conformance", ""},
		{"poison --help", exitOK, "replay", ""},
		{"poison", exitUsage, "", "usage: millrace poison"},
		{"outbox --help", exitOK, "migrate", ""},
		{"outbox retry --help", exitOK, "", "-broker"},
		{"nonsense", exitUsage, "", `unknown command "nonsense"`},
		{"version", exitOK, "millrace", ""},
		{"conformance", exitUsage, "", "--url is missing"},
		{"conformance --url memory: extra", exitUsage, "", `unexpected argument "extra"`},
		{"conformance --url memory: --run (", exitUsage, "", "--run"},
		{"conformance --url nonsense://x", exitUsage, "", `unknown scheme "nonsense"`},
		{"conformance --list", exitOK, "order/keys\n", ""},
		{"conformance --url memory: --run ^order/keys$", exitOK, "1 passed, 0 failed, 0 lacking", ""},
		{"conformance --url memory: --run ^nothing$", exitFail, "", "no check ran"},
	} {
		var stdout, stderr strings.Builder
		code := run(t.Context(), strings.Fields(tc.args), &stdout, &stderr)
		if code != tc.code || !strings.Contains(stdout.String(), tc.stdout) || !strings.Contains(stderr.String(), tc.stderr) {
			t.Errorf("millrace %s: exit %d, want %d\nstdout: %s\nstderr: %s", tc.args, code, tc.code, stdout.String(), stderr.String())
		}
	}
}

// TestPoison goes the way of a user with messages in a poison queue.
func TestPoison(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	url := "memory:" + bus.NewID()
	b, err := bus.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	came := make(chan string, 10)
	var others atomic.Int32
	other := func(context.Context, *bus.Message) error { others.Add(1); return nil }
	r := router.New(b, "billing")
	r.Group("other").HandleFunc("orders", other)
	r.HandleFunc("orders", func(_ context.Context, m *bus.Message) error {
		return bus.Permanent(errors.New("no such customer: " + m.Key))
	}, router.Name("charge"))
	start := func(r *router.Router) (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		over := make(chan error)
		go func() { over <- r.Run(ctx) }()
		return func() {
			cancel()
			if err := <-over; err != nil {
				t.Error(err)
			}
		}
	}
	stop := start(r)
	err = b.PublishMessages(t.Context(), "orders", &bus.Message{ID: "1", Key: "a", Payload: []byte("\xff")}, &bus.Message{ID: "2", Key: "b"}, &bus.Message{ID: "3", Key: "a"})
	if err != nil {
		t.Fatal(err)
	}
	for r.Health().Routes[1].Poisoned < 3 || others.Load() < 3 {
		runtime.Gosched()
	}
	stop()
	expect := func(args string, code int, want ...string) {
		t.Helper()
		var stdout, stderr strings.Builder
		args = strings.Replace(args, " ", " --url "+url+" --group billing ", 1)
		got := run(t.Context(), strings.Fields("poison "+args), &stdout, &stderr)
		for _, w := range want {
			if !strings.Contains(stdout.String()+stderr.String(), w) {
				t.Errorf("%s: no %q in %s%s", args, w, stdout.String(), stderr.String())
			}
		}
		if got != code {
			t.Errorf("%s: exit %d, want %d: %s%s", args, got, code, stdout.String(), stderr.String())
		}
	}
	expect("ls ", exitOK, "charge", "permanent", "no such customer: b")
	expect("ls --key b --json", exitOK, `"text":"no such customer: b"`)
	expect("show --id 1", exitOK, `"base64": "/w=="`)
	expect("show --id 9", exitFail, "no entry matches")
	expect("export --class permanent", exitOK, `"attempts":1`)
	expect("groups ", exitOK, "3  ", "charge")
	expect("ls --since yesterday", exitUsage, "want a time like")
	expect("show --id 1,9", exitPartly, `no entry "9"`)
	expect("drop ", exitUsage, "no flag chooses entries")
	expect("drop --id=", exitUsage, "--id is empty")
	expect("drop --handler charge --key=", exitUsage, "--key is empty")
	expect("drop --id 9", exitFail, "no entry matches")
	expect("drop --all --expect -1", exitUsage, "--expect is -1")
	expect("drop --since 1h --until 2h", exitUsage, "not before --until")
	if code := run(t.Context(), strings.Fields("poison ls --group g --url sqlite:"+t.TempDir()+"/typo.db"), io.Discard, io.Discard); code != exitUsage {
		t.Errorf("a database that is not there: exit %d", code)
	}
	if code := run(t.Context(), strings.Fields("poison ls --group g --url postgres://127.0.0.1:1/none"), io.Discard, io.Discard); code != exitFail {
		t.Errorf("a server that is not there: exit %d", code)
	}
	expect("replay --all --expect 2", exitFail, "3 entries match, and 2 were expected")
	expect("replay --all --dry-run", exitOK, "3 entries match")
	expect("drop --key b", exitOK, "1 of 1 entries dropped")
	expect("replay --handler charge --text CUSTOMER", exitOK, "2 of 2 entries replayed")
	expect("groups --json", exitOK)
	r = repaired(b, came)
	r.Group("other").HandleFunc("orders", other)
	stop = start(r)
	if a, b := <-came, <-came; a != "1" || b != "3" {
		t.Errorf("%s and %s came", a, b)
	}
	stop()
	if len(came) > 0 || others.Load() != 3 {
		t.Errorf("%d more came; the other group was given %d, want 3", len(came), others.Load())
	}
}

// repaired is the handler when it has been repaired.
func repaired(b *bus.Bus, came chan<- string) *router.Router {
	r := router.New(b, "billing")
	r.HandleFunc("orders", func(ctx context.Context, m *bus.Message) error {
		if d := bus.DeliveryFrom(ctx); d.Attempt != 1 || d.Failure == nil || d.Failure.Replays != 1 {
			came <- fmt.Sprintf("%+v", d)
		}
		came <- m.ID
		return nil
	}, router.Name("charge"))
	return r
}

func TestConformanceAsJSON(t *testing.T) {
	var stdout, stderr strings.Builder
	if code := run(t.Context(), strings.Fields("conformance --url memory: --run ^(round-trip|lifecycle/restart) --json"), &stdout, &stderr); code != exitOK {
		t.Fatalf("exit %d: %s", code, stderr.String())
	}
	seen := map[string]conformance.Status{}
	for line := range strings.Lines(stdout.String()) {
		var r conformance.Result
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		seen[r.Test] = r.Status
	}
	if seen["round-trip/fields"] != conformance.Pass || seen["lifecycle/restart"] != conformance.Lacking {
		t.Errorf("%v", seen)
	}
}

func TestFailuresAreTheExitCode(t *testing.T) {
	results := func(yield func(conformance.Result) bool) {
		yield(conformance.Result{Test: "a", Status: conformance.Pass})
		yield(conformance.Result{Test: "b", Status: conformance.Fail, Detail: "why"})
	}
	var stdout, stderr strings.Builder
	if code := report(results, false, &stdout, &stderr); code != exitFail || !strings.Contains(stdout.String(), "why") {
		t.Errorf("exit %d: %s", code, stdout.String())
	}
}
