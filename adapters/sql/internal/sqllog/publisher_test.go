package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/leaktest"
	"github.com/millrace-go/millrace/internal/sqltext"
	"github.com/millrace-go/millrace/internal/testlog"
)

func TestMain(m *testing.M) { leaktest.Main(testlog.Strict(m)) }

// fake is a store that can only write, as the test says.
type fake struct {
	Store

	dialect Dialect
	write   func(ids []string) error

	mu      sync.Mutex
	batches [][]string
}

var (
	errPassing = errors.New("passes")
	errMessage = errors.New("a message is to blame")
	errFinal   = errors.New("final")
)

func (f *fake) Append(_ context.Context, batch []Record) error {
	var ids []string
	for _, r := range batch {
		ids = append(ids, r.Message.ID)
	}
	f.mu.Lock()
	f.batches = append(f.batches, ids)
	f.mu.Unlock()
	if f.write == nil {
		return nil
	}
	return f.write(ids)
}

func (f *fake) Fault(err error) Fault {
	return Fault{Retryable: errors.Is(err, errPassing), OfMessage: errors.Is(err, errMessage), TooLarge: errors.Is(err, errMessage)}
}
func (f *fake) Dialect() *Dialect                                              { return &f.dialect }
func (f *fake) DB() *sql.DB                                                    { return nil }
func (f *fake) Reader(int64) Reader                                            { return nil }
func (f *fake) Commit(context.Context, int64, string, []Progress) (int, error) { return 0, nil }
func (f *fake) Head(context.Context, int64) (int64, error)                     { return 0, nil }
func (f *fake) As(any) bool                                                    { return false }
func (f *fake) Close() error                                                   { return nil }

// newDriver returns a driver that can publish to the topic "t".
func newDriver(t *testing.T, f *fake) *Driver {
	f.dialect = Dialect{Name: "fake", Writers: 1, BatchRows: 10, BatchBytes: 1 << 20}
	install := t.Name()
	d := &Driver{
		store: f, dialect: &f.dialect, install: install, hub: openHub(install),
		closing: make(chan struct{}), closed: make(chan struct{}), sources: map[*Source]struct{}{},
	}
	d.io, d.stopIO = context.WithCancel(context.Background())
	d.topics.init(d)
	d.publisher.init(d)
	d.announcer.init(d)
	d.topics.byName.Store("t", topic{id: 1, name: "t", shards: 1})
	t.Cleanup(func() {
		if err := d.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return d
}

func messages(ids ...string) []*bus.Message {
	var msgs []*bus.Message
	for _, id := range ids {
		msgs = append(msgs, &bus.Message{ID: id})
	}
	return msgs
}

func TestWhatComesMeanwhileIsTheNextBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		f := &fake{write: func([]string) error { <-gate; return nil }}
		d := newDriver(t, f)
		var calls sync.WaitGroup
		publish := func(ids ...string) {
			calls.Go(func() {
				if err := d.Publish(t.Context(), "t", messages(ids...)); err != nil {
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		publish("alone")
		publish("a1", "a2")
		publish("b")
		publish("c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8") // would be too much for the batch
		close(gate)
		calls.Wait()
		want := [][]string{{"alone"}, {"a1", "a2", "b"}, {"c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8"}}
		if !reflect.DeepEqual(f.batches, want) {
			t.Errorf("%v, want %v", f.batches, want)
		}
	})
}

func TestLargeCallIsCut(t *testing.T) {
	f := &fake{}
	d := newDriver(t, f)
	var ids []string
	for i := range 25 {
		ids = append(ids, fmt.Sprint(i))
	}
	if err := d.Publish(t.Context(), "t", messages(ids...)); err != nil {
		t.Fatal(err)
	}
	if want := [][]string{ids[:10], ids[10:20], ids[20:]}; !reflect.DeepEqual(f.batches, want) {
		t.Errorf("%v", f.batches)
	}
	f.batches = nil
	big := messages("big1", "big2", "small")
	big[0].Payload, big[1].Payload = make([]byte, 1<<20), make([]byte, 1<<20)
	if err := d.Publish(t.Context(), "t", big); err != nil {
		t.Fatal(err)
	}
	if want := [][]string{{"big1"}, {"big2"}, {"small"}}; !reflect.DeepEqual(f.batches, want) {
		t.Errorf("%v", f.batches)
	}
}

func TestOnlyTheMessageToBlameFails(t *testing.T) {
	f := &fake{write: func(ids []string) error {
		if slices.Contains(ids, "bad") {
			return errMessage
		}
		return nil
	}}
	d := newDriver(t, f)
	err := d.Publish(t.Context(), "t", messages("1", "2", "bad", "3", "4"))
	var pe *bus.PublishError
	if !errors.As(err, &pe) || len(pe.Errs) != 5 {
		t.Fatalf("%v", err)
	}
	for i, err := range pe.Errs {
		if (err != nil) != (i == 2) {
			t.Errorf("message %d: %v", i, err)
		}
	}
	if !bus.IsDefinite(pe.Errs[2]) || !errors.Is(err, bus.ErrTooLarge) || bus.IsRetryable(pe.Errs[2]) {
		t.Errorf("%#v", pe.Errs[2])
	}
	if last := f.batches[len(f.batches)-1]; !slices.Equal(last, []string{"3", "4"}) {
		t.Errorf("the order is lost: %v", f.batches)
	}
}

func TestOutcomes(t *testing.T) {
	for _, test := range []struct {
		err                 error
		definite, retryable bool
	}{
		{&Uncertain{errPassing}, false, true},
		{errFinal, true, false},
	} {
		d := newDriver(t, &fake{write: func([]string) error { return test.err }})
		err := d.Publish(t.Context(), "t", messages("1", "2"))
		if bus.IsDefinite(err) != test.definite || bus.IsRetryable(err) != test.retryable || !errors.Is(err, errors.Unwrap(&Uncertain{test.err})) {
			t.Errorf("%v: %v", test.err, err)
		}
		if e, ok := errors.AsType[*bus.Error](err); !ok || e.Topic != "t" || e.Op != "publish" || e.Broker != "fake" {
			t.Errorf("%#v", e)
		}
		if err := d.Close(context.Background()); err != nil {
			t.Error(err)
		}
	}
}

func TestNothingOvertakesAnUnknownOutcomeOfItsCall(t *testing.T) {
	for _, test := range []struct {
		name          string
		calls         int // messages
		sent, unknown int // of them
		write         func(ids []string) error
	}{
		{"between batches", 25, 10, 10, func(ids []string) error { return &Uncertain{errPassing} }},
		{"last batch", 25, 25, 5, func(ids []string) error {
			if len(ids) == 5 {
				return &Uncertain{errPassing}
			}
			return nil
		}},
		{"in a batch that is halved", 4, 2, 2, func(ids []string) error {
			if len(ids) == 4 {
				return errMessage
			}
			return &Uncertain{errPassing}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := &fake{write: test.write}
			d := newDriver(t, f)
			var ids []string
			for i := range test.calls {
				ids = append(ids, fmt.Sprint(i))
			}
			pe, ok := errors.AsType[*bus.PublishError](d.Publish(t.Context(), "t", messages(ids...)))
			if !ok || len(pe.Errs) != test.calls {
				t.Fatalf("%v", pe)
			}
			for i, err := range pe.Errs {
				written := i < test.sent-test.unknown
				if (err == nil) != written || !written && (bus.IsDefinite(err) != (i >= test.sent) || !bus.IsRetryable(err)) {
					t.Errorf("message %d: %v", i, err)
				}
			}
			if last := f.batches[len(f.batches)-1]; last[len(last)-1] != ids[test.sent-1] {
				t.Errorf("the last batch is %v", last)
			}
			f.write = nil
			if err := d.Publish(t.Context(), "t", messages("another call")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPublishWaitsOutAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		f := &fake{write: func([]string) error {
			if time.Since(begin) < time.Minute {
				return errPassing
			}
			return nil
		}}
		d := newDriver(t, f)
		impatient, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		var calls sync.WaitGroup
		calls.Go(func() {
			err := d.Publish(impatient, "t", messages("impatient"))
			if !errors.Is(err, context.DeadlineExceeded) || !bus.IsDefinite(err) || !bus.IsRetryable(err) {
				t.Errorf("%v", err)
			}
		})
		if err := d.Publish(t.Context(), "t", messages("patient")); err != nil {
			t.Error(err)
		}
		calls.Wait()
		if last := f.batches[len(f.batches)-1]; !slices.Equal(last, []string{"patient"}) {
			t.Errorf("%v was written, and one of the callers had gone", last)
		}
	})
}

func TestContextEndsWhileUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		d := newDriver(t, &fake{write: func([]string) error { <-gate; return nil }})
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 2)
		go func() { result <- d.Publish(ctx, "t", messages("under way")) }()
		synctest.Wait()
		queued, give := context.WithCancel(t.Context())
		other := make(chan error, 1)
		go func() { other <- d.Publish(queued, "t", messages("waits")) }()
		synctest.Wait()
		cancel()
		if err := <-result; bus.IsDefinite(err) || !errors.Is(err, context.Canceled) {
			t.Errorf("under way: %v", err)
		}
		give()
		if err := <-other; !bus.IsDefinite(err) || !errors.Is(err, context.Canceled) {
			t.Errorf("waiting: %v", err)
		}
		close(gate)
	})
}

func TestQuota(t *testing.T) {
	for _, test := range []struct {
		lanes, members int
		want           []int
	}{
		{16, 1, []int{16}},
		{16, 3, []int{6, 5, 5}},
		{16, 16, slices.Repeat([]int{1}, 16)},
		{3, 5, []int{1, 1, 1, 0, 0}},
	} {
		v := view{lanes: make([]laneRow, test.lanes)}
		for i := range test.members {
			v.members = append(v.members, fmt.Sprint("member", i))
		}
		for i, m := range v.members {
			if got := v.quota(m); got != test.want[i] {
				t.Errorf("%d lanes, member %d of %d: %d, want %d", test.lanes, i, test.members, got, test.want[i])
			}
		}
		if v.quota("stranger") != 0 {
			t.Error("a stranger has a share")
		}
	}
}

func TestLogSQL(t *testing.T) {
	d := &Dialect{Templates: sqltext.New(sqltext.Postgres, "p."), Log: func(int64) (string, string) { return "p.log_7", "topic = 7" }}
	if got, want := d.LogSQL(7, "SELECT seq FROM {log} WHERE {of} AND seq > ?"), "SELECT seq FROM p.log_7 WHERE topic = 7 AND seq > $1"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestShardIsStable(t *testing.T) {
	for _, test := range []struct {
		key    string
		shards int
		want   int32
	}{{"a", 16, 0}, {"customer-7", 16, 10}, {"ключ", 200, 15}} { // messages are stored under these
		if got := Shard(test.key, test.shards); got != test.want {
			t.Errorf("%s: %d, want %d", test.key, got, test.want)
		}
	}
	n := make([]int, 16)
	for i := range 16000 {
		n[Shard(fmt.Sprint("key-", i), 16)]++
	}
	for shard, n := range n {
		if n < 800 || n > 1200 {
			t.Errorf("shard %d has %d of 16000 keys", shard, n)
		}
	}
}
