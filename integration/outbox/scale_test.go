package outbox_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"testing"

	"github.com/millrace-go/millrace/internal/brokertest"
)

// whole asks for the sizes that a release is tested with, for which tests kill the brokers of this
// clone: `make torture`.
var whole = os.Getenv("MILLRACE_TORTURE") == "1"

// scaled is short in everyday tests, and long at the whole size.
func scaled[T any](short, long T) T {
	if whole {
		return long
	}
	return short
}

// server is a broker or a database that a test may kill, because it runs in this clone for nobody
// else.
type server struct{ name, url string }

// killable is a server; the test ends if it is not of this clone.
func killable(t testing.TB, name string) server {
	t.Helper()
	url := brokertest.URL(t, name)
	env, err := os.ReadFile("../../.brokers/env")
	if setting := brokertest.Variable(name) + "='" + url + "'"; err != nil || !bytes.Contains(env, []byte(setting)) {
		t.Fatalf("%s is not of this clone, and may not be killed: use make torture (%v)", url, err)
	}
	return server{name, url}
}

// kill ends the server with SIGKILL.
func (s server) kill(t testing.TB) { s.script(t, "kill") }

// start brings it back with its data, and returns when it serves clients.
func (s server) start(t testing.TB) { s.script(t, "start") }

func (s server) script(t testing.TB, command string) {
	t.Helper()
	if out, err := exec.CommandContext(context.Background(), "../../scripts/brokers", command, s.name).CombinedOutput(); err != nil {
		t.Errorf("scripts/brokers %s %s: %v\n%s", command, s.name, err, out)
	}
}
