package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

// childMark is the variable by which a test runs itself as a relay, to be killed.
const childMark = "MILLRACE_OUTBOX_TEST_CHILD"

type childConfig struct {
	Dialect outbox.Dialect
	Driver  string
	DSN     string
	Config  outbox.Config
	URL     string
}

func child() {
	if err := relayUntilKilled(os.Getenv(childMark)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func relayUntilKilled(config string) error {
	var c childConfig
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	ctx := context.Background()
	db, err := sql.Open(c.Driver, c.DSN)
	if err != nil {
		return err
	}
	b, err := bus.Open(ctx, c.URL)
	if err != nil {
		return err
	}
	o, err := outbox.New(c.Dialect, c.Config)
	if err != nil {
		return err
	}
	r, err := o.NewRelay(db, b, outbox.RelayConfig{Lease: 500 * time.Millisecond})
	if err != nil {
		return err
	}
	return r.Run(ctx)
}

// TestKilledRelays: relays are processes that are killed at random moments; nothing is lost and the order of keys is kept.
func TestKilledRelays(t *testing.T) {
	databases(t, func(t *testing.T, s *store) {
		url := serverURL(t, "MILLRACE_KAFKA_URL")
		n, longest, kills := 3000*tortureScale, 30*time.Millisecond, 6*tortureScale
		if s.dialect == outbox.SQLite {
			n, longest = n/4, 3*time.Millisecond
		}
		counters, topic := s.counters(t), unique("killed")
		l := newLedger()
		ctx, cancel := context.WithCancel(context.Background())
		wait := l.collect(ctx, t, openBus(t, url), topic)
		config, err := json.Marshal(childConfig{s.dialect, s.driver, s.dsn, s.config, url})
		if err != nil {
			t.Fatal(err)
		}
		stopping := make(chan struct{})
		var relays sync.WaitGroup
		killed := make(chan struct{}, 1000)
		for range 3 {
			relays.Go(func() {
				for {
					cmd := exec.Command(os.Args[0])
					cmd.Env = append(os.Environ(), childMark+"="+string(config))
					cmd.Stderr = t.Output()
					if err := cmd.Start(); err != nil {
						t.Error(err)
						return
					}
					stop := false
					select {
					case <-stopping:
						stop = true
					case <-time.After(time.Second + rand.N(time.Second)): // until the process is at work, and then any moment
					}
					if err := cmd.Process.Kill(); err != nil {
						t.Error(err)
					}
					_ = cmd.Wait() // it was killed
					if stop {
						return
					}
					killed <- struct{}{}
				}
			})
		}
		s.write(t, l, counters, topic, n, longest)
		for range kills {
			<-killed
		}
		select {
		case <-l.all():
		case <-time.After(patience):
		}
		close(stopping)
		relays.Wait()
		cancel()
		wait()
		t.Logf("%d messages, %d kills or more, %d repeats", len(l.committed), kills, l.judge(t))
	})
}
