package leaktest

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// leaking tells a child process to leave a goroutine behind.
const leaking = "MILLRACE_LEAKTEST_LEAK"

func TestMain(m *testing.M) {
	if os.Getenv(leaking) != "" {
		go forgotten()
	}
	Main(m)
}

func forgotten() { select {} }

// waits reports whether a stack is of the goroutine that TestRemaining starts.
func waits(stack string) bool { return strings.Contains(stack, "leaktest.TestRemaining.func1") }

func TestRemaining(t *testing.T) {
	stop, started := make(chan struct{}), make(chan struct{})
	go func() { close(started); <-stop }()
	<-started
	if !slices.ContainsFunc(remaining(0), waits) {
		t.Error("the goroutine of this test is not seen")
	}
	close(stop)
	if slices.ContainsFunc(remaining(time.Minute), waits) {
		t.Error("it is seen a minute after its end")
	}
}

// TestMainFails runs this test binary again with a goroutine that stays.
func TestMainFails(t *testing.T) {
	if os.Getenv(leaking) != "" {
		return
	}
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestMainFails$")
	child.Env = append(os.Environ(), leaking+"=1")
	out, err := child.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "left 1 goroutines") || !strings.Contains(string(out), "leaktest.forgotten") {
		t.Errorf("%v, want a failure that shows the goroutine:\n%s", err, out)
	}
}
