// Package docs_test checks that the documents say what is true.
package docs_test

import (
	"context"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	_ "github.com/millrace-go/millrace/adapters/all"
	"github.com/millrace-go/millrace/bus"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestReadmeStartCompiles: the program of the README is examples/hello, which is compiled with everything else.
func TestReadmeStartCompiles(t *testing.T) {
	_, rest, _ := strings.Cut(read(t, "../README.md"), "```go\n")
	program, _, _ := strings.Cut(rest, "```")
	example := read(t, "../examples/hello/main.go")
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
		out, err := exec.Command("go", "list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}", "../"+pkg).Output()
		if err != nil {
			t.Fatalf("go list ../%s: %v", pkg, err)
		}
		for dep := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(dep, module) || slices.ContainsFunc(allowed, func(p string) bool { return strings.HasPrefix(dep, p) }) {
				continue
			}
			t.Errorf("%s depends on %s", pkg, dep)
		}
	}
}

// TestConfigurationListsEveryParameter asks each driver which parameters it knows: it says so about an unknown one.
func TestConfigurationListsEveryParameter(t *testing.T) {
	doc := read(t, "configuration.md")
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
