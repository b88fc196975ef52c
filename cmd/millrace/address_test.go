package main

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestAddress(t *testing.T) {
	file := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(file, []byte("memory:file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ args, variable, want, err string }{
		{"--url memory:flag", "memory:variable", "memory:flag", ""},
		{"--url-file " + file, "memory:variable", "memory:file", ""},
		{"", "memory:variable", "memory:variable", ""},
		{"", "", "", "--url is missing, such as --url example:; --url-file FILE and $MILLRACE_URL"},
		{"--url a: --url-file " + file, "", "", "both given"},
		{"--url-file /nowhere", "memory:variable", "", "--url-file: open /nowhere"},
	} {
		t.Setenv("MILLRACE_URL", c.variable)
		fs := flag.NewFlagSet("test", flag.ContinueOnError)
		a := addressFlag(fs, "url", "the bus", "example:")
		if err := fs.Parse(strings.Fields(c.args)); err != nil {
			t.Fatal(err)
		}
		got, err := a.get()
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q, variable %q: %q, %v", c.args, c.variable, got, err)
		}
	}
}
