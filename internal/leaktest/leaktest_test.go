package leaktest

import (
	"os"
	"os/exec"
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

func TestRemaining(t *testing.T) {
	stop, started := make(chan struct{}), make(chan struct{})
	go func() { close(started); <-stop }()
	<-started
	if left := remaining(0); len(left) != 1 || !strings.Contains(left[0], "TestRemaining") {
		t.Errorf("%q, want the goroutine of this test", left)
	}
	close(stop)
	if left := remaining(time.Minute); len(left) > 0 {
		t.Errorf("%q are left of a goroutine that has ended", left)
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
