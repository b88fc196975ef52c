package kafka_test

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// TestMemberDiesBeforeItsFirstCommit: a new group begins where its first member subscribed,
// whatever becomes of this member. Every partition has its position before the member is given
// anything.
func TestMemberDiesBeforeItsFirstCommit(t *testing.T) {
	starts := map[string]func() bus.Start{
		"latest":   func() bus.Start { return bus.Latest },
		"start at": func() bus.Start { return bus.StartAt(time.Now()) },
	}
	for name, start := range starts {
		for _, members := range []string{"alone", "beside members for another topic"} {
			t.Run(name+" "+members, func(t *testing.T) {
				c := fakeCluster(t, kfake.SeedTopics(4, "t"))
				config := fakeConfig(c)
				b := open(t, config)
				for p := range int32(4) {
					produce(t, config, &kgo.Record{Topic: "t", Partition: p, Timestamp: time.Now().Add(-time.Minute), Value: []byte("before")})
				}
				if members != "alone" {
					publish(t, b, "other", texts("x")...)
					o := newObserver()
					subscribe(t, b, "other", "g", bus.Earliest, o)
					o.until(t, "the group has a member", owns(4))
				}
				dies := config
				n := &network{conns: map[net.Conn]struct{}{}}
				dies.Client, dies.CommitInterval, dies.SessionTimeout = []kgo.Opt{kgo.Dialer(n.dial)}, time.Minute, time.Second
				o := newObserver()
				s, err := open(t, dies).Driver().Subscribe(within(t), bus.Subscription{Topic: "t", Group: "g", Start: start(), InFlight: 10, Bytes: 1000}, o)
				if err != nil {
					t.Fatal(err)
				}
				o.until(t, "it has all lanes", owns(4))
				client, _ := bus.As[*kgo.Client](b)
				committed, err := kadm.NewClient(client).FetchOffsetsForTopics(within(t), "g", "t")
				if err != nil {
					t.Fatal(err)
				}
				committed.Each(func(o kadm.OffsetResponse) {
					if o.At < 0 {
						t.Errorf("partition %d has no position", o.Partition)
					}
				})
				publish(t, b, "t", texts("after")...)
				n.cut(true)
				ctx, cancel := context.WithCancel(t.Context())
				cancel()
				_ = s.Close(ctx) // it cannot
				n.cut(false)

				next := subscribe(t, b, "t", "g", start(), newObserver())
				if got := payloads(receive(t, next, 1)); !slices.Equal(got, []string{"after"}) {
					t.Errorf("received %q", got)
				}
			})
		}
	}
}
