// Package docs_test checks that the documents are true.
package docs_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/conformance"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestReadmeStartCompiles: the program of the README is examples/hello, which is compiled with
// everything else.
func TestReadmeStartCompiles(t *testing.T) {
	_, rest, _ := strings.Cut(read(t, "../../README.md"), "```go\n")
	program, _, _ := strings.Cut(rest, "```")
	example := read(t, "../../examples/hello/main.go")
	if _, example, _ = strings.Cut(example, "package main\n"); "package main\n"+example != program {
		t.Error("the program in README.md differs from examples/hello/main.go")
	}
}

// TestCoreNeedsTheStandardLibraryOnly and adapters pull in one client each.
func TestCoreNeedsTheStandardLibraryOnly(t *testing.T) {
	const module = "github.com/millrace-go/millrace/"
	for pkg, allowed := range map[string][]string{
		"bus":                   nil,
		"router":                nil,
		"outbox":                nil,
		"eventstore":            nil,
		"aggregate":             nil,
		"outbox/pgxoutbox":      {"github.com/jackc/", "golang.org/x/"},
		"middleware":            nil,
		"middleware/dedupsql":   nil,
		"middleware/breaker":    {"github.com/sony/gobreaker/v2"},
		"middleware/jsonschema": {"github.com/santhosh-tekuri/jsonschema/v6", "golang.org/x/text/"},
		"adapters/memory":       nil,
		"adapters/kafka":        {"github.com/twmb/", "github.com/klauspost/compress", "github.com/pierrec/lz4/", "golang.org/x/"},
		"adapters/rabbitmq":     {"github.com/rabbitmq/amqp091-go"},
		"adapters/sql/postgres": {"github.com/jackc/", "golang.org/x/"},
		"adapters/sql/mysql":    {"github.com/go-sql-driver/mysql", "filippo.io/edwards25519"},
		"adapters/sql/sqlite":   {"modernc.org/", "golang.org/x/", "github.com/dustin/go-humanize", "github.com/google/uuid", "github.com/mattn/go-isatty", "github.com/ncruces/go-strftime", "github.com/remyoudompheng/bigfft"},
	} {
		out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", module+pkg).Output()
		if err != nil {
			t.Fatalf("go list %s: %v", pkg, err)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(dep, module) || slices.ContainsFunc(allowed, func(p string) bool { return strings.HasPrefix(dep, p) }) {
				continue
			}
			t.Errorf("%s depends on %s", pkg, dep)
		}
	}
}

// TestConfigurationListsEveryParameter asks each driver which parameters it knows: it says so about
// an unknown one.
func TestConfigurationListsEveryParameter(t *testing.T) {
	doc := read(t, "../../docs/configuration.md")
	known := regexp.MustCompile(`parameter "nonsense" is unknown: want one of ([^\n]*)`)
	for section, url := range map[string]string{
		"memory":     "memory:",
		"sqlite":     "sqlite:none.db",
		"postgresql": "postgres://u:p@127.0.0.1:1/d",
		"mysql":      "mysql://u:p@127.0.0.1:1/d",
		"kafka":      "kafka://127.0.0.1:1",
		"rabbitmq":   "amqp://u:p@127.0.0.1:1/",
	} {
		_, err := bus.Open(context.Background(), url+"?nonsense=1")
		if err == nil {
			t.Fatalf("%s: an unknown parameter is accepted", url)
		}
		m := known.FindStringSubmatch(err.Error())
		if m == nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		_, rest, ok := strings.Cut(doc, "\n## "+section+"\n")
		if !ok {
			t.Errorf("configuration.md has no section %q", section)
			continue
		}
		text, _, _ := strings.Cut(rest, "\n## ")
		var listed []string
		for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_-]+)` \\|").FindAllStringSubmatch(text, -1) {
			listed = append(listed, row[1])
		}
		slices.Sort(listed)
		if want := strings.Split(m[1], ", "); !slices.Equal(listed, want) {
			t.Errorf("section %s lists %q,\nthe driver knows %q", section, listed, want)
		}
	}
}

// TestFailureTableIsChecked: each situation in failure-handling.md names a check of the suite, and
// no such check is missing.
func TestFailureTableIsChecked(t *testing.T) {
	_, rest, _ := strings.Cut(read(t, "../../docs/failure-handling.md"), "\n## What happens\n")
	table, _, _ := strings.Cut(rest, "\n## ")
	var listed []string
	for _, row := range regexp.MustCompile("(?m)^\\| .* \\| `([a-z/-]+)` \\|$").FindAllStringSubmatch(table, -1) {
		listed = append(listed, row[1])
	}
	for line := range strings.Lines(table) { // its head has two lines
		if strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| situation ") && !regexp.MustCompile("\\| `[a-z/-]+` \\|\n$").MatchString(line) {
			t.Errorf("nothing checks the line %s", line)
		}
	}
	checks := conformance.Checks()
	for _, name := range listed {
		if !slices.Contains(checks, name) {
			t.Errorf("there is no check %s", name)
		}
	}
	for _, name := range checks {
		theme, _, _ := strings.Cut(name, "/")
		if slices.Contains([]string{"failure", "delay", "poison", "parking"}, theme) && name != "poison/concurrent" && !slices.Contains(listed, name) {
			t.Errorf("the table says nothing of %s", name)
		}
	}
}

// TestNamedTestsExist: the tests that the documents name exist.
func TestNamedTestsExist(t *testing.T) {
	tests := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(read(t, path), -1) {
				tests[m[1]] = true
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for document, least := range map[string]int{"failure-handling.md": 10, "reliability.md": 80} {
		named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllStringSubmatch(read(t, "../../docs/"+document), -1)
		if len(named) < least {
			t.Errorf("%s names only %d tests", document, len(named))
		}
		for _, m := range named {
			if !tests[m[1]] {
				t.Errorf("%s: there is no %s", document, m[1])
			}
		}
	}
}
