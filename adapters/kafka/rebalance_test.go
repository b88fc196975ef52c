package kafka_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// joinAs joins a group as a member that never does anything again. It returns when the group has let it in.
func joinAs(ctx context.Context, client *kgo.Client, group, topic string) error {
	meta := kmsg.NewConsumerMemberMetadata()
	meta.Topics = []string{topic}
	member := ""
	for {
		req := kmsg.NewPtrJoinGroupRequest()
		req.Group, req.MemberID, req.ProtocolType = group, member, "consumer"
		req.SessionTimeoutMillis, req.RebalanceTimeoutMillis = 15_000, 60_000
		p := kmsg.NewJoinGroupRequestProtocol()
		p.Name, p.Metadata = "cooperative-sticky", meta.AppendTo(nil)
		req.Protocols = append(req.Protocols, p)
		resp, err := req.RequestWith(ctx, client)
		if err != nil {
			return err
		}
		if resp.ErrorCode == 0 {
			return nil
		}
		member = resp.MemberID // it is required, and given
	}
}

// TestCommitsWhileJoining: while the group waits for its slowest member, settlements are committed.
func TestCommitsWhileJoining(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	ds := receive(t, s, 10)
	ctx, cancel := context.WithCancel(t.Context())
	if err := joinAs(within(t), f.foreign, "g", "t"); err != nil { // it does not join the next time
		t.Fatal(err)
	}
	joining := make(chan struct{}, 8)
	f.ControlKey(int16(kmsg.JoinGroup), func(kmsg.Request) (kmsg.Response, error, bool) {
		f.KeepControl()
		joining <- struct{}{}
		return nil, nil, false
	})
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = joinAs(ctx, f.foreign, "g", "t")
	}()
	for range 3 { // the new one's two, and ours
		select {
		case <-joining:
		case <-within(t).Done():
			t.Fatal("the member did not join again")
		}
	}
	settle(t, s, ds...)
	bounded, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	if err := s.(driver.Committer).Commit(bounded); err != nil {
		t.Error(err)
	}
	f.committed(t, "g", at(10))
	cancel()
	<-over
	// The group waits 15 s for the silent member.
	bounded, stop = context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	if err := s.Close(bounded); err != nil {
		t.Errorf("close while joining: %v", err)
	}
	if bounded.Err() != nil {
		t.Error("it took as long as the slowest member")
	}
}

// TestCommitErrorsAreTold: a source that may not commit reports it, though messages come and
// handlers go on.
func TestCommitErrorsAreTold(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	o := newObserver()
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, o)
	got := receive(t, s, 10)
	fault := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.GroupAuthorizationFailed, Count: -1})
	settle(t, s, got...)
	if err := o.toldOf(t, "settlements cannot be committed"); !errors.Is(err, kerr.GroupAuthorizationFailed) || bus.IsRetryable(err) {
		t.Error(err)
	}
	fault.Remove()
	f.committed(t, "g", at(10))
	o.untilWell(t)
}
