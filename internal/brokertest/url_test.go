package brokertest_test

import (
	"runtime"
	"testing"

	"github.com/millrace-go/millrace/internal/brokertest"
)

// asker is a test that asks for a broker, and notes how it ends.
type asker struct {
	testing.TB
	ended string
}

func (*asker) Helper() {}

func (a *asker) Skip(...any)           { a.end("skipped") }
func (a *asker) Skipf(string, ...any)  { a.end("skipped") }
func (a *asker) Fatalf(string, ...any) { a.end("failed") }

func (a *asker) end(how string) {
	a.ended = how
	runtime.Goexit()
}

// TestURL: a broker that is missing fails the full test run, and nothing else.
func TestURL(t *testing.T) {
	if testing.Short() {
		t.Skip("then all are skipped")
	}
	for _, tc := range []struct{ url, required, ended string }{
		{"kafka://host", "1", "got kafka://host"},
		{"kafka://host", "", "got kafka://host"},
		{"", "", "skipped"},
		{"", "1", "failed"},
	} {
		t.Setenv("MILLRACE_KAFKA_URL", tc.url)
		t.Setenv("MILLRACE_REQUIRE_BROKERS", tc.required)
		a := &asker{TB: t}
		done := make(chan struct{})
		go func() {
			defer close(done)
			a.ended = "got " + brokertest.URL(a, "kafka")
		}()
		if <-done; a.ended != tc.ended {
			t.Errorf("URL %q, required %q: %s, want %s", tc.url, tc.required, a.ended, tc.ended)
		}
	}
}

func TestMySQLDSN(t *testing.T) {
	for url, want := range map[string]string{
		"mysql://ann:s@cret@127.0.0.1:3306/shop": "ann:s@cret@tcp(127.0.0.1:3306)/shop",
		"mysql://ann@127.0.0.1:3306/a%2Fb":       "ann@tcp(127.0.0.1:3306)/a%2Fb",
		"mysql://%":                              "mysql://%",
	} {
		if got := brokertest.MySQLDSN(url); got != want {
			t.Errorf("%s became %s, want %s", url, got, want)
		}
	}
}
