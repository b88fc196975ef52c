package all_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/pairwise"
	"github.com/millrace-go/millrace/router"
)

// hourKey is the key whose message must wait for an hour.
const hourKey = "an hour"

// waitsUntilKilled has hourKey wait, and tells when it does.
func waitsUntilKilled(ctx context.Context, b *bus.Bus, topic, group string) error {
	r := router.New(b, group)
	r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
		if m.Key == hourKey {
			return bus.RetryAfter(errors.New("later"), time.Hour)
		}
		return nil
	})
	tellWhenParked(r, 1)
	return r.Run(ctx)
}

// killedLoad: after the process was killed that had a key wait, a hundred thousand messages of a
// thousand other keys pass at the rate at which they pass in a topic where none waits, in order.
func killedLoad(t *testing.T, k *killed) {
	const keys, round = 1000, 5000
	limits := pairwise.Limits{Enough: 20, Slow: 20 * time.Second, Share: 0.8}
	k.start(t)
	behind := []*bus.Message{{ID: "head", Key: hourKey}}
	for i := range 20 {
		behind = append(behind, &bus.Message{ID: fmt.Sprint("behind-", i), Key: hourKey})
	}
	k.publish(t, behind)
	parked := false
	k.until(t, func(line string) bool { parked = true; return true })
	if !parked {
		t.Fatal("nothing was parked")
	}
	r := router.New(k.bus, k.group)
	loaded := func(topic string) func() time.Duration {
		var mu sync.Mutex
		handled, next := 0, [keys]int{}
		all := make(chan struct{}, 1)
		r.HandleFunc(topic, func(_ context.Context, m *bus.Message) error {
			mu.Lock()
			defer mu.Unlock()
			var key, n int
			if _, err := fmt.Sscanf(m.ID, "%d/%d", &key, &n); err != nil {
				t.Errorf("%s came before its time", m.ID)
				return nil
			}
			if n != next[key] {
				t.Errorf("key %d: %d came, want %d", key, n, next[key])
			}
			next[key] = n + 1
			if handled++; handled%round == 0 {
				all <- struct{}{}
			}
			return nil
		})
		published := 0
		return func() time.Duration {
			start := time.Now()
			for range round / keys {
				msgs := make([]*bus.Message, keys)
				for i := range msgs {
					msgs[i] = &bus.Message{ID: fmt.Sprintf("%d/%d", i, published), Key: fmt.Sprint("quick-", i)}
				}
				published++
				if err := k.bus.PublishMessages(k.ctx, topic, msgs...); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-all:
			case <-k.ctx.Done():
				t.Fatalf("%s: a round did not come to its end", topic)
			}
			return time.Since(start)
		}
	}
	k.owns(t, k.topic+"-usual")
	usual, waiting := loaded(k.topic+"-usual"), loaded(k.topic)
	var got pairwise.Result
	k.run(t, r, func() bool {
		usual()
		waiting() // the lanes are there
		got = pairwise.Compare(limits, usual, waiting)
		return true
	})
	if got.Share < limits.Share {
		t.Errorf("%.0f %% of the usual rate", 100*got.Share)
	}
	t.Logf("%d messages at %.0f %% of the usual %.0f/s", got.Pairs*round, 100*got.Share, round/got.Usual.Seconds())
}
