package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/conformance"
)

func TestCommands(t *testing.T) {
	for _, tc := range []struct {
		args           string
		code           int
		stdout, stderr string
	}{
		{"", exitUsage, "usage: millrace", ""},
		{"help", exitOK, "conformance", ""},
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
