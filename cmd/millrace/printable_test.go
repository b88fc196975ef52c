package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestNothingControlsTheTerminal: whatever the texts of an entry hold, no command prints a control
// or format character but the ends of its own lines, and JSON keeps its meaning.
func TestNothingControlsTheTerminal(t *testing.T) {
	const hostile = "a\x1b]0;owned\a\x7f\u009b31m\u202e\u2066\ufeff\r\nFORGED\tLINE"
	url := "memory:" + bus.NewID()
	b, err := bus.Open(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	store, err := driver.Of(b).Poison(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	if err := store.Put(t.Context(), driver.PoisonEntry{
		ID: "e" + hostile, Topic: "t", Group: "g", Handler: hostile, Host: hostile, Time: now,
		Failure: bus.Failure{Class: hostile, Text: hostile, Stack: hostile, First: now, Last: now},
		Message: &bus.Message{
			ID: hostile, Key: hostile, Type: hostile, Source: hostile, Subject: hostile, ContentType: hostile, Time: now,
			Headers: bus.Headers{{Name: hostile, Value: hostile}}, Payload: []byte(hostile),
		},
	}); err != nil {
		t.Fatal(err)
	}
	call := func(args ...string) (stdout string) {
		var out, errs strings.Builder
		run(t.Context(), args, &out, &errs)
		for _, r := range out.String() + errs.String() {
			if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
				t.Errorf("%q prints %U in %q%q", args, r, out.String(), errs.String())
				break
			}
		}
		return out.String()
	}
	for _, tc := range []struct {
		args  string
		lines int
	}{
		{"ls", 2}, {"ls --json", 1}, {"groups", 2}, {"groups --json", 1}, {"show --json", 1}, {"export", 1},
	} {
		out := call(append([]string{"poison"}, append(strings.Fields(tc.args), "--url", url, "--group", "g")...)...)
		if n := strings.Count(out, "\n"); n != tc.lines {
			t.Errorf("%s prints %d lines: %q", tc.args, n, out)
		}
		if tc.args == "export" {
			var r record
			if err := json.Unmarshal([]byte(out), &r); err != nil || r.Message.Key != hostile || *r.Message.Payload != hostile {
				t.Errorf("exported: %+v %v", r, err)
			}
		}
	}
	call("poison", "show", "--url", url, "--group", "g")
	call("poison", "show", "--url", url, "--group", "g", "--id", hostile)
	call("poison", "replay", "--url", url, "--group", "g", "--all")
	call("poison", "ls", "--group", "g", "--url", "memory:"+hostile)
	call("conformance", "--run", hostile+"(", "--url", "memory:")
	call(hostile)
}
