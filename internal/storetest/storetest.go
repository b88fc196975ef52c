// Package storetest tests an event store: what all of them have in common, once. Each adapter calls
// Run, so that memory and the databases are proved equal.
package storetest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
)

// Place is where the tests run.
type Place struct {
	// Open opens another bus on the same broker.
	Open func(t testing.TB) *bus.Bus
	// DB begins the user's transactions; nil: there are none.
	DB *sql.DB
	// Serial: a transaction that appends holds up all appends to its store.
	Serial bool
	// Sleep is a statement that takes 200 ms, for transactions that stand still.
	Sleep string
}

// Run runs all tests.
func Run(t *testing.T, p Place) {
	for name, test := range map[string]func(*testing.T, Place){
		"AppendAndRead": appendAndRead,
		"Expected":      expected,
		"Repeated":      repeated,
		"Several":       several,
		"OneConflict":   oneConflict,
		"ManyWriters":   manyWriters,
		"All":           all,
		"Follow":        follow,
		"Pages":         pages,
		"Streams":       streams,
		"Closed":        closed,
		"Truncate":      truncate,
		"TruncateGroup": truncateGroup,
		"Times":         times,
		"Snapshots":     snapshots,
		"LateSnapshot":  lateSnapshot,
		"Group":         group,
		"Publish":       publish,
		"Opens":         opens,
		"Arguments":     arguments,
		"ClosedBus":     closedBus,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, p)
		})
	}
	if p.DB != nil {
		runTransactions(t, p)
	}
}

// patience is how long a test waits for what should come in milliseconds.
const patience = 60 * time.Second

func bounded(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

var names atomic.Int64

// topic returns a new topic's name.
func topic() string { return fmt.Sprintf("store%d-%s", names.Add(1), bus.NewID()[24:]) }

// open opens a new store.
func open(t testing.TB, p Place, opts ...eventstore.Option) *eventstore.Store {
	t.Helper()
	return reopen(t, p, topic(), opts...)
}

func reopen(t testing.TB, p Place, topic string, opts ...eventstore.Option) *eventstore.Store {
	t.Helper()
	s, err := eventstore.Open(bounded(t), p.Open(t), topic, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// happened is an event.
type happened struct{ N int }

func (happened) EventType() string { return "test.happened.v1" }

func events(from, n int) []any {
	all := make([]any, n)
	for i := range all {
		all[i] = happened{from + i}
	}
	return all
}

func mustAppend(t testing.TB, s *eventstore.Store, stream string, e eventstore.Expected, events ...any) eventstore.Appended {
	t.Helper()
	done, err := s.Append(bounded(t), stream, e, events...)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// collect reads all that a sequence yields.
func collect[T any](t testing.TB, seq func(yield func(T, error) bool)) []T {
	t.Helper()
	var all []T
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

// brief is events in short: stream@version.
func brief(events []eventstore.Recorded) string {
	texts := make([]string, len(events))
	for i, e := range events {
		texts[i] = fmt.Sprintf("%s@%d", e.Stream, e.Version)
	}
	return strings.Join(texts, " ")
}

func same[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func is(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error is %v, want one that wraps %q", err, want)
	}
}

// conflicts checks that err is a definite conflict with a version.
func conflicts(t testing.TB, err error, actual int64) {
	t.Helper()
	c, ok := errors.AsType[*eventstore.Conflict](err)
	if !ok {
		t.Errorf("error is %v, want a conflict", err)
		return
	}
	same(t, "the actual version", c.Actual, actual)
	if !bus.IsDefinite(err) || bus.IsRetryable(err) {
		t.Errorf("a conflict is definite %v, retryable %v", bus.IsDefinite(err), bus.IsRetryable(err))
	}
}

func appendAndRead(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	at := time.Date(2026, 3, 4, 5, 6, 7, 891_000_000, time.UTC)
	first := &bus.Message{
		ID: "e1", Key: "other", Type: "test.full", Source: "/test", Subject: "sub", Time: at, ContentType: "text/plain",
		Headers: bus.Headers{{Name: "a", Value: "1"}, {Name: "a", Value: "\xff"}}, Payload: []byte("body"),
	}
	done := mustAppend(t, s, "order-1", eventstore.New, first, happened{2}, &bus.Message{Type: "test.empty", Payload: []byte{}})
	same(t, "version", done.Version, 3)
	more := mustAppend(t, s, "order-1", eventstore.At(3), happened{4})
	same(t, "version", more.Version, 4)
	if more.Position <= done.Position || more.Repeated {
		t.Errorf("appended %+v after %+v", more, done)
	}
	got := collect(t, s.Read(ctx, "order-1", 0))
	same(t, "events", brief(got), "order-1@1 order-1@2 order-1@3 order-1@4")
	for i, e := range got[1:] {
		if e.Position <= got[i].Position {
			t.Errorf("position %d follows %d", e.Position, got[i].Position)
		}
	}
	same(t, "the last position", got[3].Position, more.Position)
	m := got[0]
	if m.ID != "e1" || m.Key != "order-1" || m.Type != "test.full" || m.Source != "/test" || m.Subject != "sub" || !m.Time.Equal(at) ||
		m.ContentType != "text/plain" || !slices.Equal(m.Headers, first.Headers) || string(m.Payload) != "body" {
		t.Errorf("the message came back as %+v", *m.Message)
	}
	if p := got[2].Payload; p == nil || len(p) != 0 {
		t.Errorf("an empty payload came back as %v", p)
	}
	var h happened
	if err := got[3].Decode(&h); err != nil || h.N != 4 {
		t.Errorf("decoded %v: %v", h, err)
	}
	same(t, "from 3", brief(collect(t, s.Read(ctx, "order-1", 3))), "order-1@3 order-1@4")
	same(t, "from 5", brief(collect(t, s.Read(ctx, "order-1", 5))), "")
	same(t, "back", brief(collect(t, s.Back(ctx, "order-1"))), "order-1@4 order-1@3 order-1@2 order-1@1")
	same(t, "none", brief(collect(t, s.Read(ctx, "order-2", 1))), "")
	same(t, "none back", brief(collect(t, s.Back(ctx, "order-2"))), "")
}

func expected(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	for _, tc := range []struct {
		name                   string
		expected               eventstore.Expected
		onNone, onTwo, onThree bool
	}{
		{"new", eventstore.New, true, false, false},
		{"any", eventstore.Any, true, true, true},
		{"exists", eventstore.Exists, false, true, true},
		{"two", eventstore.At(2), false, true, false},
		{"five", eventstore.At(5), false, false, false},
	} {
		for n, ok := range map[int]bool{0: tc.onNone, 2: tc.onTwo, 3: tc.onThree} {
			stream := fmt.Sprintf("%s-%d", tc.name, n)
			if n > 0 {
				mustAppend(t, s, stream, eventstore.New, events(1, n)...)
			}
			done, err := s.Append(ctx, stream, tc.expected, happened{9})
			if !ok {
				conflicts(t, err, int64(n))
			} else if err != nil || done.Version != int64(n)+1 {
				t.Errorf("%s: %+v, %v", stream, done, err)
			}
			if !ok {
				n--
			}
			same(t, "events of "+stream, len(collect(t, s.Read(ctx, stream, 0))), n+1)
		}
	}
}

func messages(ids ...string) []any {
	all := make([]any, len(ids))
	for i, id := range ids {
		all[i] = &bus.Message{ID: id, Type: "test", Payload: []byte(id)}
	}
	return all
}

func repeated(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	first := mustAppend(t, s, "a", eventstore.New, messages("1", "2")...)
	mustAppend(t, s, "a", eventstore.At(2), messages("3")...)
	again := mustAppend(t, s, "a", eventstore.New, messages("1", "2")...)
	first.Repeated = true
	same(t, "repeated", again, first)
	for _, ids := range [][]string{{"1", "x"}, {"2", "1"}, {"1", "2", "3", "4"}} {
		_, err := s.Append(ctx, "a", eventstore.New, messages(ids...)...)
		conflicts(t, err, 3)
	}
	_, err := s.Append(ctx, "a", eventstore.At(1), messages("1")...)
	conflicts(t, err, 3)
	same(t, "any is no repeat", mustAppend(t, s, "a", eventstore.Any, messages("1")...).Repeated, false)

	both := []eventstore.Write{eventstore.To("a", eventstore.At(4), messages("5")...), eventstore.To("b", eventstore.New, messages("6")...)}
	for i := range 2 {
		done, err := s.AppendAll(ctx, both...)
		if err != nil {
			t.Fatal(err)
		}
		same(t, "repeated", done[0].Repeated && done[1].Repeated, i == 1)
	}
	_, err = s.AppendAll(ctx, both[0], eventstore.To("c", eventstore.New, messages("7")...)) // half of it is there
	conflicts(t, err, 5)
	same(t, "c", brief(collect(t, s.Read(ctx, "c", 0))), "")
}

func several(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	mustAppend(t, s, "a", eventstore.New, happened{1})
	done, err := s.AppendAll(ctx, eventstore.To("a", eventstore.At(1), events(2, 2)...), eventstore.To("b", eventstore.New, happened{1}))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "version of a", done[0].Version, 3)
	same(t, "version of b", done[1].Version, 1)
	_, err = s.AppendAll(ctx, eventstore.To("a", eventstore.At(3), happened{4}), eventstore.To("b", eventstore.New, happened{1}))
	conflicts(t, err, 1)
	if c, ok := errors.AsType[*eventstore.Conflict](err); ok {
		same(t, "the stream in conflict", c.Stream, "b")
	}
	same(t, "a", brief(collect(t, s.Read(ctx, "a", 0))), "a@1 a@2 a@3")
	same(t, "b", brief(collect(t, s.Read(ctx, "b", 0))), "b@1")
}

func pages(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	const n = 2500
	for i := 0; i < n; i += 500 {
		mustAppend(t, s, "long", eventstore.At(int64(i)), events(i+1, 500)...)
	}
	got := collect(t, s.Read(ctx, "long", 0))
	same(t, "events", len(got), n)
	for i, e := range got {
		var h happened
		if err := e.Decode(&h); err != nil || e.Version != int64(i)+1 || h.N != i+1 {
			t.Fatalf("event %d: version %d, %v, %v", i, e.Version, h, err)
		}
	}
	same(t, "back", len(collect(t, s.Back(ctx, "long"))), n)
	same(t, "all", len(collect(t, s.All(ctx, 0))), n)
	for _, err := range s.Read(ctx, "long", 0) {
		if err != nil {
			t.Error(err)
		}
		break
	}
}

func streams(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	before := time.Now().Add(-time.Minute)
	for i, name := range []string{"order-2", "order-1", "user-1", "order", "order-10", "ordes", "order-\xff"} {
		mustAppend(t, s, name, eventstore.New, events(1, i+1)...)
	}
	if err := s.CloseStream(ctx, "order-1"); err != nil {
		t.Fatal(err)
	}
	list := func(prefix string) (texts []string) {
		for _, i := range collect(t, s.Streams(ctx, prefix)) {
			if i.Changed.Before(before) || i.Changed.After(time.Now().Add(time.Minute)) {
				t.Errorf("%s changed at %v", i.Name, i.Changed)
			}
			texts = append(texts, fmt.Sprintf("%q %d-%d %v", i.Name, i.First, i.Last, i.Closed))
		}
		return texts
	}
	same(t, "orders", strings.Join(list("order-"), ", "), `"order-1" 1-3 true, "order-10" 1-5 false, "order-2" 1-1 false, "order-\xff" 1-7 false`)
	same(t, "all", len(list("")), 7)
	same(t, "none", len(list("nobody")), 0)
	same(t, "last", len(list("order-\xff")), 1)
}

func closed(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	is(t, s.CloseStream(ctx, "a"), bus.ErrNotFound)
	mustAppend(t, s, "a", eventstore.New, happened{1})
	for range 2 {
		if err := s.CloseStream(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range []eventstore.Expected{eventstore.At(2), eventstore.Any, eventstore.Exists, eventstore.At(1)} {
		_, err := s.Append(ctx, "a", e, happened{2})
		is(t, err, eventstore.ErrClosed)
		same(t, "definite", bus.IsDefinite(err), true)
	}
	got := collect(t, s.Read(ctx, "a", 0))
	same(t, "events", brief(got), "a@1 a@2")
	same(t, "the last type", got[1].Type, eventstore.TypeClosed)
	_, err := s.AppendAll(ctx, eventstore.To("b", eventstore.New, happened{1}), eventstore.To("a", eventstore.Any, happened{1}))
	is(t, err, eventstore.ErrClosed)
	same(t, "b", len(collect(t, s.Read(ctx, "b", 0))), 0)
}

func truncate(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	mustAppend(t, s, "a", eventstore.New, events(1, 10)...)
	mustAppend(t, s, "b", eventstore.New, events(1, 3)...)
	for _, tc := range []struct{ before, first int64 }{{1, 1}, {4, 4}, {2, 4}, {100, 10}} {
		first, err := s.Truncate(ctx, "a", tc.before)
		if err != nil {
			t.Fatal(err)
		}
		same(t, fmt.Sprintf("the first version, truncated before %d", tc.before), first, tc.first)
	}
	same(t, "what is left", brief(collect(t, s.Read(ctx, "a", 0))), "a@10")
	same(t, "from the last", brief(collect(t, s.Read(ctx, "a", 10))), "a@10")
	for _, err := range s.Read(ctx, "a", 9) {
		is(t, err, eventstore.ErrTruncated)
	}
	same(t, "the next version", mustAppend(t, s, "a", eventstore.At(10), happened{11}).Version, 11)
	same(t, "all", brief(collect(t, s.All(ctx, 0))), "a@10 b@1 b@2 b@3 a@11")
	_, err := s.Truncate(ctx, "c", 5)
	is(t, err, bus.ErrNotFound)
}

func times(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	head, err := s.Head(ctx)
	if err != nil {
		t.Fatal(err)
	}
	a := mustAppend(t, s, "a", eventstore.New, happened{1})
	if a.Position <= head {
		t.Errorf("position %d is not above the head %d", a.Position, head)
	}
	if head, err = s.Head(ctx); err != nil || head < a.Position {
		t.Errorf("head %d, %v, after position %d", head, err, a.Position)
	}
	past, err := s.Before(ctx, time.Now().Add(-time.Hour))
	if err != nil || past >= a.Position {
		t.Errorf("an hour ago: position %d, %v", past, err)
	}
	same(t, "since an hour ago", brief(collect(t, s.All(ctx, past))), "a@1")
	future, err := s.Before(ctx, time.Now().Add(time.Hour))
	if err != nil || future < a.Position {
		t.Errorf("in an hour: position %d, %v", future, err)
	}
	same(t, "since then", brief(collect(t, s.All(ctx, future))), "")
}

func snapshots(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	got, err := s.Snapshot(ctx, "a")
	if err != nil || got.Version != 0 || got.State != nil {
		t.Errorf("no snapshot is %+v, %v", got, err)
	}
	for v := range int64(3) {
		want := eventstore.Snapshot{Schema: int(v), Version: 10 - v, EventID: "e", ContentType: "text/plain", State: []byte{0, 0xff, byte(v)}}
		if err := s.SaveSnapshot(ctx, "a", want); err != nil {
			t.Fatal(err)
		}
		if got, err = s.Snapshot(ctx, "a"); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("snapshot %+v, %v, want %+v", got, err, want)
		}
	}
}

// lateSnapshot: a snapshot that comes late does not replace a newer one.
func lateSnapshot(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	for _, tc := range []struct{ schema, version, want int }{{1, 5, 5}, {1, 4, 5}, {1, 6, 6}, {2, 3, 3}, {1, 2, 2}} {
		if err := s.SaveSnapshot(ctx, "a", eventstore.Snapshot{Schema: tc.schema, Version: int64(tc.version), State: []byte("x")}); err != nil {
			t.Fatal(err)
		}
		got, err := s.Snapshot(ctx, "a")
		if err != nil || got.Version != int64(tc.want) {
			t.Errorf("after %+v the snapshot has version %d, %v", tc, got.Version, err)
		}
	}
}

func opens(t *testing.T, p Place) {
	ctx, b := bounded(t), p.Open(t)
	plain := topic()
	if err := b.Publish(ctx, plain, happened{1}); err != nil {
		t.Fatal(err)
	}
	_, err := eventstore.Open(ctx, b, plain)
	is(t, err, bus.ErrInvalid)
	for _, opt := range []eventstore.Option{eventstore.Shards(0), eventstore.Shards(257), eventstore.MaxEvents(0), eventstore.MaxEvents(10_001)} {
		_, err := eventstore.Open(ctx, b, topic(), opt)
		is(t, err, bus.ErrInvalid)
	}
	_, err = eventstore.Open(ctx, b, "not a name")
	is(t, err, bus.ErrInvalid)

	name, errs := topic(), make(chan error)
	for range 4 {
		b := p.Open(t)
		go func() {
			s, err := eventstore.Open(ctx, b, name, eventstore.Shards(3))
			if err == nil {
				_, err = s.Append(ctx, "a", eventstore.Any, happened{1})
			}
			errs <- err
		}()
	}
	for range 4 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	s, err := eventstore.Open(ctx, b, name, eventstore.Shards(5))
	if err != nil {
		t.Fatal(err)
	}
	same(t, "topic", s.Topic(), name)
	same(t, "all", brief(collect(t, s.All(ctx, 0))), "a@1 a@2 a@3 a@4")
}

func arguments(t *testing.T, p Place) {
	s, ctx := open(t, p, eventstore.MaxEvents(3)), bounded(t)
	for what, writes := range map[string][]eventstore.Write{
		"no stream":    {eventstore.To("", eventstore.Any, happened{1})},
		"long stream":  {eventstore.To(strings.Repeat("a", 256), eventstore.Any, happened{1})},
		"no events":    {eventstore.To("a", eventstore.Any)},
		"no writes":    {},
		"too many":     {eventstore.To("a", eventstore.Any, events(1, 4)...)},
		"twice":        {eventstore.To("a", eventstore.Any, happened{1}), eventstore.To("a", eventstore.Any, happened{1})},
		"negative":     {eventstore.To("a", eventstore.At(-3), happened{1})},
		"no JSON":      {eventstore.To("a", eventstore.Any, make(chan int))},
		"the reserved": {eventstore.To("a", eventstore.Any, &bus.Message{Type: eventstore.TypeClosed})},
		"later": {eventstore.To("a", eventstore.Any, &bus.Message{
			Type: "x", Headers: bus.Headers{{Name: bus.HeaderDeliverAt, Value: "2030-01-01T00:00:00Z"}},
		})},
		"long id": {eventstore.To("a", eventstore.Any, &bus.Message{ID: strings.Repeat("a", 256)})},
	} {
		_, err := s.AppendAll(ctx, writes...)
		if !errors.Is(err, bus.ErrInvalid) || !bus.IsDefinite(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	same(t, "all", len(collect(t, s.All(ctx, 0))), 0)
}

func closedBus(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	mustAppend(t, s, "a", eventstore.New, happened{1})
	followed := make(chan error, 1)
	started := make(chan struct{})
	go func() {
		for e, err := range s.Follow(ctx, 0) {
			if err != nil {
				followed <- err
				return
			}
			_ = e
			close(started)
		}
	}()
	<-started
	if err := s.Bus().Close(); err != nil {
		t.Fatal(err)
	}
	is(t, <-followed, bus.ErrClosed)
	_, err := s.Append(ctx, "a", eventstore.Any, happened{1})
	is(t, err, bus.ErrClosed)
	same(t, "definite", bus.IsDefinite(err), true)
	for _, err := range s.Read(ctx, "a", 0) {
		is(t, err, bus.ErrClosed)
	}
	for _, err := range s.All(ctx, 0) {
		is(t, err, bus.ErrClosed)
	}
	_, err = s.Head(ctx)
	is(t, err, bus.ErrClosed)
}
