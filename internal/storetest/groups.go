package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// consume runs a router of a group until n events have come. during runs beside it.
func consume(t *testing.T, s *eventstore.Store, groupName string, n int, during func()) []eventstore.Recorded {
	t.Helper()
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	got := make(chan eventstore.Recorded, n)
	r := router.New(s.Bus(), groupName, router.Logger(testlog.New(t)))
	r.HandleFunc(s.Topic(), func(_ context.Context, m *bus.Message) error {
		e, err := s.Recorded(m)
		if err != nil {
			return err
		}
		got <- e
		return nil
	})
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	if during != nil {
		during()
	}
	var all []eventstore.Recorded
	for len(all) < n {
		select {
		case e := <-got:
			all = append(all, e)
		case <-ctx.Done():
			t.Fatalf("%d of %d events came", len(all), n)
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	return all
}

// group: a group of the store's topic gets all events, those of a stream in their order, with
// version and position.
func group(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	const n = 300
	add := func(from int) {
		for i := from; i < from+n/2; i++ {
			mustAppend(t, s, fmt.Sprintf("s-%d", i%7), eventstore.Any, happened{i})
		}
	}
	add(0)
	got := consume(t, s, "view", n, func() { add(n / 2) })
	stored := map[string]eventstore.Recorded{}
	for _, e := range collect(t, s.All(ctx, 0)) {
		stored[e.ID] = e
	}
	versions := map[string]int64{}
	for _, e := range got {
		want := stored[e.ID]
		if versions[e.Stream]++; e.Version != versions[e.Stream] || e.Version != want.Version || e.Position != want.Position || e.Stream != want.Stream {
			t.Fatalf("%s@%d at %d came as number %d of its stream; it is stored as %s@%d at %d", e.Stream, e.Version, e.Position,
				versions[e.Stream], want.Stream, want.Version, want.Position)
		}
		var h happened
		if err := e.Decode(&h); err != nil {
			t.Error(err)
		}
	}
	// What it has finished is not handled again, and its lag is known.
	mustAppend(t, s, "s-1", eventstore.Any, happened{n})
	lagger, ok := bus.As[driver.Lagger](s.Bus())
	if !ok {
		t.Fatal("no lag")
	}
	lag, err := lagger.Lag(ctx, s.Topic(), "view")
	if err != nil || lag.Messages != 1 {
		t.Errorf("lag %d, %v", lag.Messages, err)
	}
	same(t, "the next event", brief(consume(t, s, "view", 1, nil)), fmt.Sprintf("s-1@%d", versions["s-1"]+1))
	same(t, "another group", len(consume(t, s, "other", n+1, nil)), n+1)
}

// publish: what is published or emitted to the store's topic is appended to the stream that is its
// key.
func publish(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	mustAppend(t, s, "a", eventstore.New, happened{1})
	if err := bus.PublishAll(ctx, s.Bus(), s.Topic(), []happened{{2}, {3}}, bus.WithKey("a")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseStream(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*bus.Message{{Type: "x"}, {Type: eventstore.TypeClosed, Key: "b"}, {Type: "x", Key: "a"}} {
		err := s.Bus().PublishMessages(ctx, s.Topic(), m)
		if err == nil || !bus.IsDefinite(err) {
			t.Errorf("%v: %v", m, err)
		}
	}
	mixed := []*bus.Message{{Type: "x", Key: "c"}, {Type: "x"}, {Type: "y", Key: "d"}}
	err := s.Bus().PublishMessages(ctx, s.Topic(), mixed...)
	if pe, ok := errors.AsType[*bus.PublishError](err); !ok || pe.Errs[0] != nil || pe.Errs[1] == nil || pe.Errs[2] != nil {
		t.Errorf("published two of three: %v", err)
	}
	same(t, "all", brief(collect(t, s.All(ctx, 0))), "a@1 a@2 a@3 a@4 c@1 d@1")

	many := make([]happened, 2345) // more than a statement takes
	if err := bus.PublishAll(ctx, s.Bus(), s.Topic(), many, bus.WithKey("many")); err != nil {
		t.Fatal(err)
	}
	same(t, "many", len(collect(t, s.Read(ctx, "many", 1))), len(many))

	from := topic()
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	r := router.New(s.Bus(), "emitter", router.Logger(testlog.New(t)))
	r.HandleFunc(from, func(ctx context.Context, m *bus.Message) error {
		return bus.Emit(ctx, s.Topic(), happened{7}, bus.WithKey("emitted"))
	})
	ended := make(chan error, 1)
	go func() { ended <- r.Run(run) }()
	for range 3 {
		if err := s.Bus().Publish(ctx, from, happened{1}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for e, err := range s.Follow(ctx, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Stream == "emitted" {
			n++
			same(t, "version", e.Version, int64(n))
		}
		if n == 3 {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// truncateGroup: events that a group has not handled are not removed.
func truncateGroup(t *testing.T, p Place) {
	s, ctx := open(t, p), bounded(t)
	mustAppend(t, s, "a", eventstore.New, events(1, 5)...)
	consume(t, s, "view", 5, nil)
	mustAppend(t, s, "a", eventstore.At(5), events(6, 5)...)
	first, err := s.Truncate(ctx, "a", 9)
	if err != nil || first != 6 {
		t.Errorf("truncated to %d, %v, want 6: the group has handled 5 events", first, err)
	}
	same(t, "the group", brief(consume(t, s, "view", 5, nil)), "a@6 a@7 a@8 a@9 a@10")
	for first < 9 && ctx.Err() == nil { // what was handled is committed a little later
		if first, err = s.Truncate(ctx, "a", 9); err != nil {
			t.Fatal(err)
		}
	}
	same(t, "what is left", brief(collect(t, s.Read(ctx, "a", 0))), "a@9 a@10")
	mustAppend(t, s, "a", eventstore.At(10), happened{11})
	same(t, "the group", brief(consume(t, s, "view", 1, nil)), "a@11")
}
