package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// fake is a cluster with a topic of one partition, a bus, and a client that acts as foreign
// programs do.
type fake struct {
	*kfake.Cluster
	bus     *bus.Bus
	foreign *kgo.Client
	adm     *kadm.Client
}

func newFake(tb testing.TB) *fake {
	tb.Helper()
	c := fakeCluster(tb, kfake.SeedTopics(1, "t"))
	foreign, err := kgo.NewClient(kgo.SeedBrokers(c.ListenAddrs()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(foreign.Close)
	return &fake{Cluster: c, bus: open(tb, fakeConfig(c)), foreign: foreign, adm: kadm.NewClient(foreign)}
}

// lag waits until the group's lag is n. Each look is a request, so it does not spin.
func (f *fake) lag(tb testing.TB, topic, group string, n int64) {
	tb.Helper()
	lagger, _ := bus.As[driver.Lagger](f.bus)
	ctx := within(tb)
	for {
		lag, err := lagger.Lag(ctx, topic, group)
		if err == nil && lag.Messages == n {
			return
		}
		if ctx.Err() != nil {
			tb.Fatalf("lag %+v, want %d: %v", lag, n, err)
		}
	}
}

// committed waits for a commit of the partition that ok wants.
func (f *fake) committed(tb testing.TB, group string, ok func(kfake.GroupCommit) bool) kfake.GroupCommit {
	tb.Helper()
	var c kfake.GroupCommit
	_, err := f.WaitGroupInfo(within(tb), group, func(g *kfake.GroupInfo) bool {
		if g == nil {
			return false
		}
		var found bool
		c, found = g.Commits["t"][0]
		return found && ok(c)
	})
	if err != nil {
		tb.Fatalf("the last commit was %+v: %v", c, err)
	}
	return c
}

func at(offset int64) func(kfake.GroupCommit) bool {
	return func(c kfake.GroupCommit) bool { return c.Offset == offset }
}

// numbers returns n messages with their numbers as payloads.
func numbers(from, n int) []*bus.Message {
	ms := make([]*bus.Message, n)
	for i := range ms {
		ms[i] = &bus.Message{Key: "k", Payload: []byte(fmt.Sprint(from + i))}
	}
	return ms
}

func TestWindowSurvives(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 1000)...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	var left []string
	got := receive(t, s, 1000)
	for i, d := range got {
		if i%7 == 0 || i%11 == 3 {
			left = append(left, string(d.Payload))
			continue
		}
		settle(t, s, d)
	}
	c := f.committed(t, "g", func(c kfake.GroupCommit) bool { return strings.HasPrefix(c.Metadata, "mr1:") })
	if c.Offset != 0 {
		t.Errorf("committed %d", c.Offset)
	}
	closeSource(t, s)
	s = subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	if got := payloads(receive(t, s, len(left))); !slices.Equal(got, left) {
		t.Errorf("got %v, want %v", got, left)
	}
}

// TestMetadataIsBounded leaves more open than the metadata has room for. The commit must not be refused for it.
func TestMetadataIsBounded(t *testing.T) {
	f := newFake(t)
	const n = 20000
	publish(t, f.bus, "t", numbers(0, n)...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	got := receive(t, s, n)
	settle(t, s, got[:10]...)
	for i := 11; i < n; i += 2 {
		settle(t, s, got[i])
	}
	closeSource(t, s)
	c := f.GroupInfo("g").Commits["t"][0]
	if c.Offset != 10 || len(c.Metadata) < 3900 || len(c.Metadata) > 4096 {
		t.Errorf("committed %d with metadata of %d characters", c.Offset, len(c.Metadata))
	}
	s = subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	again := payloads(receive(t, s, 100))
	for i, p := range again {
		if p != fmt.Sprint(10+2*i) {
			t.Fatalf("message %d is %s", i, p)
		}
	}
}

func TestForeignMetadataIsIgnored(t *testing.T) {
	for _, metadata := range []string{"someone else's", "mr1:", "mr1:!!", "mr1:AAAA", "mr1:Bwoy"} {
		f := newFake(t)
		publish(t, f.bus, "t", numbers(0, 10)...)
		var offsets kadm.Offsets
		offsets.Add(kadm.Offset{Topic: "t", Partition: 0, At: 4, LeaderEpoch: -1, Metadata: metadata})
		if err := f.adm.CommitAllOffsets(within(t), "g", offsets); err != nil {
			t.Fatal(err)
		}
		s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
		if got := payloads(receive(t, s, 6)); !slices.Equal(got, []string{"4", "5", "6", "7", "8", "9"}) {
			t.Errorf("with %q: %q", metadata, got)
		}
	}
}

func TestReceiveBounds(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	publish(t, f.bus, "t", &bus.Message{Key: "k", Payload: make([]byte, 100_000)})
	publish(t, f.bus, "t", numbers(11, 10)...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	buf := make([]bus.Delivery, 4)
	next := int64(0)
	for next < 21 {
		n, err := s.Receive(within(t), buf, 50_000)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range buf[:n] {
			if d.Position != next {
				t.Errorf("position %d, want %d", d.Position, next)
			}
			if d.Position == 10 && n != 1 {
				t.Errorf("a message beyond the bound came with %d others", n-1)
			}
			next++
		}
	}
}

func TestReceiveEnds(t *testing.T) {
	f := newFake(t)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	ctx, cancel := context.WithCancel(within(t))
	over := make(chan error)
	wait := func() { _, err := s.Receive(ctx, make([]bus.Delivery, 1), 1000); over <- err }
	go wait()
	cancel()
	if err := <-over; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	ctx = within(t)
	go wait()
	closeSource(t, s)
	if err := <-over; !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
	closeSource(t, s)
	if err := s.Settle(ctx, []bus.Token{{}}); !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
}

func TestStart(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 3)...)
	between := time.Now()
	publish(t, f.bus, "t", numbers(3, 3)...)
	latest := subscribe(t, f.bus, "t", "latest", bus.Latest, newObserver())
	publish(t, f.bus, "t", numbers(6, 3)...)
	for _, tc := range []struct {
		group string
		start bus.Start
		want  []string
	}{
		{"earliest", bus.Earliest, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8"}},
		{"between", bus.StartAt(between), []string{"3", "4", "5", "6", "7", "8"}},
		{"past", bus.StartAt(between.Add(-time.Hour)), []string{"0", "1", "2", "3", "4", "5", "6", "7", "8"}},
		{"between", bus.Earliest, []string{"3", "4", "5", "6", "7", "8"}}, // the group has a position
	} {
		s := subscribe(t, f.bus, "t", tc.group, tc.start, newObserver())
		if got := payloads(receive(t, s, len(tc.want))); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %v, want %v", tc.group, got, tc.want)
		}
		closeSource(t, s)
	}
	if got := payloads(receive(t, latest, 3)); !slices.Equal(got, []string{"6", "7", "8"}) {
		t.Errorf("latest: %v", got)
	}
	if _, err := f.bus.Driver().Subscribe(within(t), bus.Subscription{Topic: "t", Group: "g", Start: bus.StartAt(time.Time{}), InFlight: 1, Bytes: 1}, newObserver()); !errors.Is(err, bus.ErrInvalid) {
		t.Error(err)
	}
}

// TestLatestInAGroupWithMembers: while a group has members, only they may commit.
func TestLatestInAGroupWithMembers(t *testing.T) {
	f := newFake(t)
	other := newObserver()
	publish(t, f.bus, "other", texts("x")...)
	subscribe(t, f.bus, "other", "g", bus.Earliest, other)
	other.until(t, "the group has a member", owns(4))
	publish(t, f.bus, "t", texts("before")...)
	s := subscribe(t, f.bus, "t", "g", bus.Latest, newObserver())
	publish(t, f.bus, "t", texts("after")...)
	if got := payloads(receive(t, s, 1)); !slices.Equal(got, []string{"after"}) {
		t.Errorf("got %q", got)
	}
}

func TestCommitIsRepeated(t *testing.T) {
	for _, err := range []*kerr.Error{kerr.RebalanceInProgress, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.UnknownServerError} {
		t.Run(err.Message, func(t *testing.T) {
			f := newFake(t)
			publish(t, f.bus, "t", numbers(0, 10)...)
			s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
			got := receive(t, s, 10)
			f.committed(t, "g", at(0)) // a new group's beginning
			fault := f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: err, Count: 2})
			settle(t, s, got...)
			if err := fault.Wait(within(t), 2); err != nil {
				t.Fatal(err)
			}
			f.committed(t, "g", at(10))
			f.lag(t, "t", "g", 0)
		})
	}
}

// TestMetadataRefused: a broker that is configured to take less than the default gets none.
func TestMetadataRefused(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	got := receive(t, s, 10)
	f.committed(t, "g", at(0))
	f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.OffsetMetadataTooLarge})
	settle(t, s, got[0], got[5])
	if c := f.committed(t, "g", at(1)); c.Metadata != "" {
		t.Errorf("metadata %q", c.Metadata)
	}
}

func TestSessionLost(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	o := newObserver()
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, o)
	got := receive(t, s, 10)
	settle(t, s, got[:3]...)
	f.committed(t, "g", at(3))
	first := got[0].Epoch
	f.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Group: "g", Err: kerr.UnknownMemberID})
	o.until(t, "the lane is lost and comes back", func(o *observer) bool { return len(o.lost) == 1 && o.owned[0] > first })
	if o.lost[0].Epoch != first {
		t.Errorf("lost epoch %d, want %d", o.lost[0].Epoch, first)
	}
	// Tokens received under the old ownership settle nothing.
	if err := s.Settle(within(t), []bus.Token{got[5].Token}); !errors.Is(err, bus.ErrStale) {
		t.Error(err)
	}
	var again []bus.Delivery
	for len(again) < 7 {
		buf := make([]bus.Delivery, 10)
		n, err := s.Receive(within(t), buf, 1<<20)
		if err != nil { // the loss is visible once
			if !errors.Is(err, kerr.UnknownMemberID) || !bus.IsRetryable(err) {
				t.Error(err)
			}
			continue
		}
		again = append(again, buf[:n]...)
	}
	if got := payloads(again); !slices.Equal(got, []string{"3", "4", "5", "6", "7", "8", "9"}) {
		t.Errorf("again %v", got)
	}
	settle(t, s, again...)
	f.committed(t, "g", at(10))
}

func TestCoordinatorMoves(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	got := receive(t, s, 10)
	settle(t, s, got[:5]...)
	f.committed(t, "g", at(5))
	old := f.CoordinatorFor("g")
	for f.CoordinatorFor("g") == old {
		f.RehashCoordinators()
	}
	settle(t, s, got[5:]...)
	f.committed(t, "g", at(10))
	if err := f.MoveTopicPartition("t", 0, 1-f.LeaderFor("t", 0)); err != nil {
		t.Fatal(err)
	}
	publish(t, f.bus, "t", texts("after")...)
	if got := payloads(receive(t, s, 1)); got[0] != "after" {
		t.Errorf("got %q", got)
	}
}

// until receives until a message comes, and returns the errors that Receive returned before.
func until(tb testing.TB, s bus.Source) ([]bus.Delivery, []error) {
	tb.Helper()
	var errs []error
	ctx := within(tb)
	for {
		buf := make([]bus.Delivery, 100)
		n, err := s.Receive(ctx, buf, 1<<20)
		if n > 0 {
			return buf[:n], errs
		}
		if errors.Is(err, context.DeadlineExceeded) {
			tb.Fatalf("nothing comes after %v", errs)
		}
		if err != nil {
			errs = append(errs, err)
		}
	}
}

func TestRetentionWasQuicker(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	settle(t, s, receive(t, s, 10)[:2]...)
	closeSource(t, s)
	if err := f.DeleteRecords("t", 0, 6); err != nil {
		t.Fatal(err)
	}
	s = subscribe(t, f.bus, "t", "g", bus.Latest, newObserver())
	got, errs := until(t, s)
	got = append(got, receive(t, s, 4-len(got))...)
	if p := payloads(got); !slices.Equal(p, []string{"6", "7", "8", "9"}) {
		t.Errorf("got %v", p)
	}
	if _, err := s.Receive(shortly(t), make([]bus.Delivery, 1), 1000); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		errs = append(errs, err)
	}
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "records from 2 to 5 were deleted by retention") {
		t.Errorf("reported %v", errs)
	}
	settle(t, s, got...)
	f.lag(t, "t", "g", 0)

	// The rest, too, while the group waits.
	closeSource(t, s)
	publish(t, f.bus, "t", numbers(10, 5)...)
	if err := f.DeleteRecords("t", 0, 15); err != nil {
		t.Fatal(err)
	}
	s = subscribe(t, f.bus, "t", "g", bus.Latest, newObserver())
	if _, err := s.Receive(within(t), make([]bus.Delivery, 1), 1000); err == nil || !strings.Contains(err.Error(), "records from 10 to 14 were deleted by retention") {
		t.Error(err)
	}
	f.lag(t, "t", "g", 0)
	publish(t, f.bus, "t", texts("after")...)
	if got := payloads(receive(t, s, 1)); got[0] != "after" {
		t.Errorf("got %q", got)
	}
}

// shortly bounds the wait for messages that must not come.
func shortly(tb testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(tb.Context(), 100*time.Millisecond)
	tb.Cleanup(cancel)
	return ctx
}

// TestPositionBeyondTheEnd: the log is another log than the group has read.
func TestPositionBeyondTheEnd(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 3)...)
	var offsets kadm.Offsets
	offsets.Add(kadm.Offset{Topic: "t", Partition: 0, At: 100, LeaderEpoch: -1})
	if err := f.adm.CommitAllOffsets(within(t), "g", offsets); err != nil {
		t.Fatal(err)
	}
	o := newObserver()
	s := subscribe(t, f.bus, "t", "g", bus.Latest, o)
	got, errs := until(t, s)
	got = append(got, receive(t, s, 3-len(got))...)
	if p := payloads(got); !slices.Equal(p, []string{"0", "1", "2"}) {
		t.Errorf("got %v", p)
	}
	if _, err := s.Receive(shortly(t), make([]bus.Delivery, 1), 1000); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		errs = append(errs, err)
	}
	if len(errs) != 1 || !strings.Contains(errs[0].Error(), "the group was at offset 100 and goes on at 0") {
		t.Errorf("reported %v", errs)
	}
	if len(o.lost) != 1 || o.owned[0] != got[0].Epoch {
		t.Errorf("lost %v, owned %v, delivered under %d", o.lost, o.owned, got[0].Epoch)
	}
	settle(t, s, got...)
	f.committed(t, "g", at(3))
}

func TestControlRecords(t *testing.T) {
	f := newFake(t)
	producer, err := kgo.NewClient(kgo.SeedBrokers(f.ListenAddrs()...), kgo.TransactionalID("tx"), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(producer.Close)
	for i, end := range []kgo.TransactionEndTry{kgo.TryCommit, kgo.TryAbort, kgo.TryCommit, kgo.TryAbort} {
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := producer.ProduceSync(within(t), kgo.StringRecord(fmt.Sprint(i))).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := producer.EndTransaction(within(t), end); err != nil {
			t.Fatal(err)
		}
	}
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	got := receive(t, s, 2)
	if p := payloads(got); !slices.Equal(p, []string{"0", "2"}) {
		t.Errorf("got %v: want what was committed", p)
	}
	settle(t, s, got...)
	// Somebody has to receive for the markers at the end to be seen.
	_, _ = s.Receive(shortly(t), make([]bus.Delivery, 1), 1000)
	f.lag(t, "t", "g", 0)
}

// TestMarkerThatTheWatcherHasPassed: the watcher moves the position past the end of a transaction, which the client has already, or is
// about to get, and hands out later: that is no sign of a log that was cut off.
func TestMarkerThatTheWatcherHasPassed(t *testing.T) {
	f := newFake(t)
	producer, err := kgo.NewClient(kgo.SeedBrokers(f.ListenAddrs()...), kgo.TransactionalID("tx"), kgo.DefaultProduceTopic("t"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(producer.Close)
	produce := func(text string, end kgo.TransactionEndTry) {
		t.Helper()
		err := producer.BeginTransaction()
		if err == nil {
			err = producer.ProduceSync(within(t), kgo.StringRecord(text)).FirstErr()
		}
		if err == nil {
			err = producer.EndTransaction(within(t), end)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	produce("0", kgo.TryCommit)
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
	first := receive(t, s, 1)[0]
	settle(t, s, first)
	_, _ = s.Receive(shortly(t), make([]bus.Delivery, 1), 1000) // takes the end of the transaction
	produce("aborted", kgo.TryAbort)
	kafka.SetPolling(s, true)
	f.committed(t, "g", at(4))
	kafka.SetPolling(s, false)
	produce("1", kgo.TryCommit)
	if second := receive(t, s, 1)[0]; string(second.Payload) != "1" || second.Epoch != first.Epoch {
		t.Errorf("then came %q, of ownership %d after %d", second.Payload, second.Epoch, first.Epoch)
	}
}

// TestGapAtTheEnd: compaction has removed the last records. Nothing comes of them, and yet the group is at the end.
func TestGapAtTheEnd(t *testing.T) {
	f := newFake(t)
	if err := f.CreateTopic("c", 1, map[string]string{"cleanup.policy": "compact", "delete.retention.ms": "0", "segment.ms": "1", "segment.bytes": "1", "min.cleanable.dirty.ratio": "0"}); err != nil {
		t.Fatal(err)
	}
	publish(t, f.bus, "c", &bus.Message{Key: "a", Payload: []byte("1")}, &bus.Message{Key: "b", Payload: []byte("2")})
	publish(t, f.bus, "c", &bus.Message{Key: "b"})
	publish(t, f.bus, "c", &bus.Message{Key: "c"})
	f.Compact()
	f.Compact()
	end := f.PartitionInfo("c", 0).HighWatermark
	s := subscribe(t, f.bus, "c", "g", bus.Earliest, newObserver())
	got, _ := until(t, s)
	settle(t, s, got...)
	t.Logf("received %v of a log that ends at %d", payloads(got), end)
	stop := make(chan struct{})
	ctx, cancel := context.WithCancel(within(t))
	go func() {
		defer close(stop)
		for {
			buf := make([]bus.Delivery, 10)
			n, err := s.Receive(ctx, buf, 1<<20)
			if err != nil {
				return
			}
			tokens := make([]bus.Token, n)
			for i := range n {
				tokens[i] = buf[i].Token
			}
			_ = s.Settle(ctx, tokens)
		}
	}()
	f.lag(t, "c", "g", 0)
	cancel()
	<-stop
}

func TestTopicDeletedAndMadeAgain(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 10)...)
	o := newObserver()
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, o)
	settle(t, s, receive(t, s, 10)...)
	f.committed(t, "g", at(10))
	f.lag(t, "t", "g", 0)
	_, _ = s.Receive(shortly(t), make([]bus.Delivery, 1), 1000)
	if err := f.DeleteTopic("t"); err != nil {
		t.Fatal(err)
	}
	if err := o.toldOf(t, "the topic cannot be found"); !errors.Is(err, bus.ErrNotFound) {
		t.Error(err)
	}
	if err := f.CreateTopic("t", 1, nil); err != nil {
		t.Fatal(err)
	}
	if err := f.foreign.ProduceSync(within(t), &kgo.Record{Topic: "t", Value: []byte("new")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	got, errs := until(t, s)
	t.Log(errs)
	if payloads(got)[0] != "new" {
		t.Errorf("got %q", payloads(got))
	}
	settle(t, s, got...)
	f.committed(t, "g", at(1))
}

// TestSubscribeWaitsForCoordinator: on a new cluster, the first group comes before the topic that keeps positions.
func TestSubscribeWaitsForCoordinator(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(1, "t"))
	b := open(t, fakeConfig(c))
	refused := make(chan struct{}, 1)
	c.ControlKey(int16(kmsg.OffsetFetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		resp.ErrorCode = kerr.CoordinatorNotAvailable.Code
		for _, g := range req.(*kmsg.OffsetFetchRequest).Groups {
			group := kmsg.NewOffsetFetchResponseGroup()
			group.Group, group.ErrorCode = g.Group, kerr.CoordinatorNotAvailable.Code
			resp.Groups = append(resp.Groups, group)
		}
		refused <- struct{}{}
		return resp, nil, true
	})
	s := subscribe(t, b, "t", "g", bus.Latest, newObserver())
	<-refused
	publish(t, b, "t", texts("x")...)
	settle(t, s, receive(t, s, 1)...)
}
