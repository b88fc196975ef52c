package kafka_test

import (
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// holdUp is a hook of the native client that holds up the records produced to a topic, until it is
// released.
type holdUp struct {
	topic   string
	held    chan struct{}
	release chan struct{}
	once    sync.Once
}

func newHoldUp(topic string) *holdUp {
	return &holdUp{topic: topic, held: make(chan struct{}), release: make(chan struct{})}
}

// OnProduceRecordBuffered implements kgo.HookProduceRecordBuffered.
func (h *holdUp) OnProduceRecordBuffered(r *kgo.Record) {
	if r.Topic == h.topic {
		h.once.Do(func() {
			close(h.held)
			<-h.release
		})
	}
}

// removeMembers has the broker remove all members of the group, as after a session that expired.
func removeMembers(tb testing.TB, b *bus.Bus, group string) {
	tb.Helper()
	client, _ := bus.As[*kgo.Client](b)
	described, err := kadm.NewClient(client).DescribeGroups(within(tb), group)
	if err != nil {
		tb.Fatal(err)
	}
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = group
	for _, m := range described[group].Members {
		leaver := kmsg.NewLeaveGroupRequestMember()
		leaver.MemberID = m.MemberID
		req.Members = append(req.Members, leaver)
	}
	if resp, err := req.RequestWith(within(tb), client); err != nil || resp.ErrorCode != 0 {
		tb.Fatalf("%v %+v", err, resp)
	}
}

// TestTransactionOfALaneThatCameBack: a lane that is lost and assigned again while its outputs are
// being published has another ownership. The member's new generation does not vouch for the former
// ownership's work.
func TestTransactionOfALaneThatCameBack(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		in, out, group := name("in"), name("out"), name("g")
		hold := newHoldUp(out)
		well := open(t, c)
		c.Client = []kgo.Opt{kgo.WithHooks(hold)}
		b := open(t, c)
		onePartition(t, well, in)
		onePartition(t, well, out)
		publish(t, well, in, texts("a")...)
		s, o := transactional(t, b, in, group)
		ds := receive(t, s, 1)
		settled := make(chan error, 1)
		go func() {
			settled <- s.SettleWith(within(t), []driver.Settlement{{Token: ds[0].Token, Outputs: output(out, "A of the lost lane")}})
		}()
		<-hold.held
		removeMembers(t, well, group)
		o.until(t, "the lane is lost, and comes back", func(o *observer) bool { return len(o.lost) == 1 && len(o.owned) == 1 })
		close(hold.release)
		if err := <-settled; !errors.Is(bus.Outcomes(err, 1)[0], bus.ErrStale) {
			t.Errorf("settling for the lost lane: %v", err)
		}
		again := receive(t, s, 1)
		for err := errors.New("not yet"); err != nil; {
			err = s.SettleWith(within(t), []driver.Settlement{{Token: again[0].Token, Outputs: output(out, "A")}})
			if err != nil && !bus.IsRetryable(err) {
				t.Fatal(err)
			}
		}
		publish(t, well, out, texts("end")...)
		outs := subscribe(t, well, out, group, bus.Earliest, newObserver())
		if got := payloads(receive(t, outs, 2)); !slices.Equal(got, []string{"A", "end"}) {
			t.Errorf("published were %q", got)
		}
	})
}
