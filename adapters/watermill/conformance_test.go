package watermill_test

import (
	"database/sql"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	_ "github.com/millrace-go/millrace/adapters/watermill/brokers"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/conformance"
	"github.com/millrace-go/millrace/internal/brokertest"
)

const (
	report    = "../../docs/watermill.md"
	migration = "../../docs/migrating-from-watermill.md"
)

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// reported reads the table of the report: check → column → pass, fail, lacking or varies, and
// whether a note explains it.
func reported(t *testing.T) map[string]map[string]string {
	t.Helper()
	text := read(t, report)
	_, rest, _ := strings.Cut(text, "\n| check |")
	header, rest, _ := strings.Cut(rest, "\n")
	columns := strings.Split(header, "|")
	table := map[string]map[string]string{}
	for line := range strings.Lines(rest) {
		if strings.HasPrefix(line, "|---") {
			continue
		}
		if !strings.HasPrefix(line, "|") {
			break
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		check := strings.TrimSpace(cells[0])
		table[check] = map[string]string{}
		for i, cell := range cells[1:] {
			word, note, _ := strings.Cut(strings.TrimSpace(cell), " ")
			table[check][strings.TrimSpace(columns[i])] = word
			if (word == "fail" || word == "varies") && !strings.Contains(text, "\n"+note+" ") {
				t.Errorf("%s: check %s of %s is %q without an explanation", report, check, columns[i], cell)
			}
		}
	}
	if len(table) < 40 {
		t.Fatalf("%s has a table of %d checks", report, len(table))
	}
	return table
}

// bridged are Watermill's pub/subs, by the report's columns.
var bridged = []struct {
	column string
	url    func(t *testing.T) string
}{
	{"w/gochannel", func(*testing.T) string { return "watermill+gochannel:" + bus.NewID() }},
	{"w/kafka", func(t *testing.T) string { return "watermill+" + brokertest.URL(t, "kafka") }},
	{"w/amqp", func(t *testing.T) string { return "watermill+" + brokertest.URL(t, "rabbitmq") }},
	{"w/postgres", watermillSchema},
}

// watermillSchema is a PostgreSQL schema for Watermill's tables.
func watermillSchema(t *testing.T) string {
	url, schema := brokertest.URL(t, "postgres"), brokertest.Schema(t)
	db, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.ExecContext(t.Context(), "CREATE SCHEMA "+schema); err != nil {
		t.Fatal(err)
	}
	return "watermill+sql+" + brokertest.With(url, "search_path="+schema)
}

// TestConformance: Watermill's pub/subs behave as reported, no less and no more.
func TestConformance(t *testing.T) {
	want := reported(t)
	// This check looks at all goroutines of the process, so it runs alone.
	const alone = "lifecycle/no-goroutine-left"
	together := slices.DeleteFunc(conformance.Checks(), func(check string) bool { return check == alone })
	t.Run("together", func(t *testing.T) {
		for _, b := range bridged {
			t.Run(b.column, func(t *testing.T) {
				url := b.url(t)
				t.Parallel()
				verify(t, url, together, b.column, want)
			})
		}
	})
	for _, b := range bridged {
		t.Run(b.column, func(t *testing.T) { verify(t, b.url(t), []string{alone}, b.column, want) })
	}
}

func verify(t *testing.T, url string, checks []string, column string, want map[string]map[string]string) {
	t.Helper()
	run := regexp.MustCompile("^(" + strings.Join(checks, "|") + ")$")
	for r := range conformance.Verify(t.Context(), conformance.URL(url), conformance.Options{Run: run, Timeout: 30 * time.Second}) {
		said := want[r.Test][column]
		switch {
		case said == "" && r.Status != conformance.Fail: // a check that the report does not know yet
		case said == "varies" || said == string(r.Status):
		default:
			t.Errorf("%s: %s, and the report says %q: %s", r.Test, r.Status, said, r.Detail)
		}
	}
}

// TestReportNamesParameters asks each URL form which parameters it knows: it says so about an
// unknown one.
func TestReportNamesParameters(t *testing.T) {
	text := read(t, report)
	known := regexp.MustCompile(`parameter "nonsense" is unknown: want one of ([^\n]*)`)
	for _, url := range []string{"watermill+kafka://127.0.0.1:1", "watermill+amqp://u:p@127.0.0.1:1/", "watermill+sql+postgres://u:p@127.0.0.1:1/d"} {
		_, err := bus.Open(t.Context(), url+"?nonsense=1")
		if err == nil {
			t.Fatalf("%s: an unknown parameter is accepted", url)
		}
		m := known.FindStringSubmatch(err.Error())
		if m == nil {
			t.Fatalf("%s: %v", url, err)
		}
		for _, p := range strings.Split(m[1], ", ") {
			if !strings.Contains(text, "`"+p+"`") {
				t.Errorf("%s: parameter %q of %s is missing", report, p, url)
			}
		}
	}
}

// TestWrongURLs: each mistake is named, and no password is printed.
func TestWrongURLs(t *testing.T) {
	for url, want := range map[string]string{
		"watermill+kafka://":                              "want watermill+kafka://host:port",
		"watermill+kafka://h:1/path":                      "want watermill+kafka://host:port",
		"watermill+kafka://127.0.0.1:1?partitions=x":      `parameter "partitions" is "x"`,
		"watermill+amqp://u:secret@h/?preset=x":           `parameter "preset" is "x": want one of pubsub, queue`,
		"watermill+amqp:":                                 "want watermill+amqp://",
		"watermill+sql+postgres://u:secret@h/d?payload=x": `parameter "payload" is "x": want one of bytea, json`,
		"watermill+gochannel://x":                         "want watermill+gochannel:",
		"watermill+amqp://u:secret@127.0.0.1:1/":          "watermill-amqp: open",
		"watermill+sql+postgres://u:secret@127.0.0.1:1/d": "watermill-postgres: open",
	} {
		_, err := bus.Open(t.Context(), url, bus.WithConnectTimeout(2*time.Second))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %s", url, err, want)
		}
	}
}

// TestDocumentsNameWhatExists: the code in the documents is of this module.
func TestDocumentsNameWhatExists(t *testing.T) {
	exported := []string{"AMQPMarshaler", "Driver", "Forward", "FromWatermill", "Handler", "HandlerMiddleware", "KafkaMarshaler", "Middleware", "Publisher", "PublisherConfig", "Shared", "Subscriber", "SubscriberConfig", "ToWatermill", "Unwrap", "Wrap", "Config", "KeyMetadata"}
	used := regexp.MustCompile(`\b(?:watermill|brokers)\.([A-Z]\w+)`)
	for _, path := range []string{report, migration} {
		for _, m := range used.FindAllStringSubmatch(read(t, path), -1) {
			if !slices.Contains(exported, m[1]) {
				t.Errorf("%s names %s", path, m[0])
			}
		}
	}
}
