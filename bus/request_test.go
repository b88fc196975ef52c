package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

type (
	QuoteRequest struct{ SKU string }
	Quote        struct{ Cents int }
)

// answering is a bus with a router that answers requests for quotes.
func answering(t *testing.T, h func(context.Context, QuoteRequest) (Quote, error), opts ...router.Option) *bus.Bus {
	b := bustest.New(t)
	r := router.New(b, "pricing", router.Policy{Retry: router.Schedule{time.Second}})
	r.Handle("quotes", bus.Reply(h), opts...)
	bustest.Run(t, r)
	return b
}

func TestRequestsGetTheirOwnReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := answering(t, func(_ context.Context, q QuoteRequest) (Quote, error) { return Quote{len(q.SKU)}, nil })
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				q, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{strings.Repeat("x", i)})
				if err != nil || q.Cents != i {
					t.Errorf("%v, %v, want %d", q, err, i)
				}
			})
		}
		wg.Wait()
		if n := b.LateReplies(); n != 0 {
			t.Errorf("%d late replies", n)
		}
	})
}

func TestRefusalsAreReplies(t *testing.T) {
	testlog.Expect(t, "handler failed")
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		b := answering(t, func(ctx context.Context, q QuoteRequest) (Quote, error) {
			if err := bus.Emit(ctx, "outputs", q); err != nil {
				return Quote{}, err
			}
			tries++
			switch q.SKU {
			case "":
				return Quote{}, bus.Permanent(errors.New("no SKU"))
			case "gone":
				return Quote{}, fmt.Errorf("look up: %w", &bus.ReplyError{Code: "no_such_sku", Text: "it was sold out in May"})
			case "void":
				return Quote{}, bus.Ignore(&bus.ReplyError{Text: "never mind"})
			case "slow":
				if tries < 2 {
					return Quote{}, errors.New("database away")
				}
			}
			return Quote{7}, nil
		})
		for _, tc := range []struct {
			event any
			want  bus.ReplyError
			tries int
		}{
			{QuoteRequest{}, bus.ReplyError{Code: "failed", Text: "no SKU"}, 1},
			{QuoteRequest{"gone"}, bus.ReplyError{Code: "no_such_sku", Text: "it was sold out in May"}, 1},
			{QuoteRequest{"void"}, bus.ReplyError{Code: "failed", Text: "never mind"}, 1},
			{QuoteRequest{"slow"}, bus.ReplyError{}, 2},
			{bus.Message{Type: "QuoteRequest", Payload: []byte("{")}, bus.ReplyError{Code: "undecodable"}, 0},
		} {
			tries = 0
			q, err := bus.Request[Quote](t.Context(), b, "quotes", tc.event)
			if tc.want.Code == "" {
				if err != nil || q.Cents != 7 {
					t.Errorf("%v: %v, %v", tc.event, q, err)
				}
			} else if re, ok := errors.AsType[*bus.ReplyError](err); !ok || re.Code != tc.want.Code || tc.want.Text != "" && re.Text != tc.want.Text {
				t.Errorf("%v: %v", tc.event, err)
			}
			if tries != tc.tries {
				t.Errorf("%v: %d tries, want %d", tc.event, tries, tc.tries)
			}
		}
		if got := bustest.Published[QuoteRequest](t, b, "outputs"); !slices.Equal(got, []QuoteRequest{{"slow"}}) {
			t.Errorf("outputs of refusals got out: %v", got)
		}
		store, err := driver.Of(b).Poison(t.Context(), "pricing")
		if err != nil {
			t.Fatal(err)
		}
		for e, err := range store.List(t.Context()) {
			t.Errorf("a refused request was poisoned: %v %v", e, err)
		}
	})
}

func TestCallerWhoLeavesLeavesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		answer := make(chan struct{})
		b := answering(t, func(context.Context, QuoteRequest) (Quote, error) {
			<-answer
			return Quote{1}, nil
		})
		ctx, cancel := context.WithCancel(t.Context())
		left := make(chan error)
		go func() {
			_, err := bus.Request[Quote](ctx, b, "quotes", QuoteRequest{"a"}, bus.WithID("same"))
			left <- err
		}()
		synctest.Wait()
		if _, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{"b"}, bus.WithID("same")); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("a second request with the same id: %v", err)
		}
		cancel()
		if err := <-left; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		start := time.Now()
		if _, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{"c"}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != bus.DefaultRequestTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		close(answer)
		synctest.Wait()
		if n := b.LateReplies(); n != 2 {
			t.Errorf("%d late replies, want 2", n)
		}
		if _, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{"d"}, bus.WithID("same")); err != nil {
			t.Error(err)
		}
	})
}

// The first reply counts; a second one is late, and does not get in the way of others.
func TestRepeatedReplies(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := answering(t, func(ctx context.Context, q QuoteRequest) (Quote, error) {
			m := bus.DeliveryFrom(ctx).Message
			for i := range 3 {
				if err := bus.Emit(ctx, m.Headers.Get(bus.HeaderReplyTo), Quote{i}, bus.WithCause(m)); err != nil {
					return Quote{}, err
				}
			}
			return Quote{3}, nil
		})
		for range 5 {
			if _, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{}); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		if n := b.LateReplies(); n != 15 {
			t.Errorf("%d late replies, want 15", n)
		}
	})
}

func TestRequestsEndWithTheBus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		over := make(chan error)
		go func() {
			_, err := bus.Request[Quote](t.Context(), b, "nobody", QuoteRequest{})
			over <- err
		}()
		synctest.Wait()
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		if err := <-over; !errors.Is(err, bus.ErrClosed) {
			t.Error(err)
		}
		if _, err := bus.Request[Quote](t.Context(), b, "nobody", QuoteRequest{}); !errors.Is(err, bus.ErrClosed) {
			t.Error(err)
		}
	})
}

// slowToSubscribe subscribes only when the test lets it.
type slowToSubscribe struct {
	driver.Driver
	fail chan error
}

func (d *slowToSubscribe) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	select {
	case err := <-d.fail:
		if err != nil {
			return nil, err
		}
		return d.Driver.Subscribe(ctx, s, o)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func TestInboxOpensOnceAndAgainAfterAFailure(t *testing.T) {
	testlog.Expect(t, "has closed the inbox")
	synctest.Test(t, func(t *testing.T) {
		d := &slowToSubscribe{driver.Of(bustest.New(t)), make(chan error)}
		b := bus.New(d, bus.WithInbox("replies-web-1"))
		ask := func(ctx context.Context) chan error {
			over := make(chan error, 1)
			go func() {
				_, err := bus.Request[Quote](ctx, b, "quotes", QuoteRequest{})
				over <- err
			}()
			synctest.Wait()
			return over
		}
		impatient, cancel := context.WithCancel(t.Context())
		first, second := ask(impatient), ask(t.Context())
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		d.fail <- bus.ErrUnsupported
		if err := <-second; !errors.Is(err, bus.ErrUnsupported) || !strings.Contains(err.Error(), "inbox") {
			t.Error(err)
		}
		third := ask(t.Context())
		d.fail <- errors.New("not now") // is tried again
		synctest.Wait()
		d.fail <- nil
		synctest.Wait()
		r := router.New(b, "pricing")
		r.Handle("quotes", bus.Reply(func(ctx context.Context, _ QuoteRequest) (Quote, error) {
			if to := bus.DeliveryFrom(ctx).Headers.Get(bus.HeaderReplyTo); to != "replies-web-1" {
				t.Errorf("reply to %q", to)
			}
			return Quote{}, nil
		}))
		go func() { d.fail <- nil }()
		bustest.Run(t, r)
		if err := <-third; err != nil {
			t.Error(err)
		}
		fourth := bus.New(d, bus.WithInbox("a b"))
		if _, err := bus.Request[Quote](t.Context(), fourth, "quotes", QuoteRequest{}); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), `"a b"`) {
			t.Error(err)
		}
		fifth := bus.New(&slowToSubscribe{driver.Of(bustest.New(t)), make(chan error)})
		opening := make(chan error)
		go func() {
			_, err := bus.Request[Quote](t.Context(), fifth, "quotes", QuoteRequest{})
			opening <- err
		}()
		synctest.Wait()
		go fifth.Close()
		if err := <-opening; !errors.Is(err, bus.ErrClosed) {
			t.Error(err)
		}
	})
}

func TestRepliesNobodyAskedFor(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	synctest.Test(t, func(t *testing.T) {
		b := answering(t, func(ctx context.Context, q QuoteRequest) (Quote, error) {
			if q.SKU == "" {
				return Quote{}, bus.Permanent(errors.New("no SKU"))
			}
			return Quote{}, nil
		}, router.Name("h"))
		for _, m := range []*bus.Message{ // published as ordinary messages
			{ID: "fine", Type: "QuoteRequest", Payload: []byte(`{"SKU":"a"}`)},
			{ID: "refused", Type: "QuoteRequest", Payload: []byte(`{}`)},
			{ID: "bad address", Type: "QuoteRequest", Payload: []byte(`{"SKU":"a"}`), Headers: bus.Headers{{Name: bus.HeaderReplyTo, Value: "no/topic"}}},
		} {
			if err := b.PublishMessages(t.Context(), "quotes", m); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		store, err := driver.Of(b).Poison(t.Context(), "pricing")
		if err != nil {
			t.Fatal(err)
		}
		var poisoned []string
		for e, err := range store.List(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			poisoned = append(poisoned, e.Message.ID)
		}
		slices.Sort(poisoned)
		if !slices.Equal(poisoned, []string{"bad address", "refused"}) {
			t.Errorf("poisoned %v", poisoned)
		}
	})
}

func ExampleRequest() {
	ctx, stop := context.WithCancel(context.Background())
	b, err := bus.Open(ctx, "memory:")
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	r := router.New(b, "pricing")
	r.Handle("quotes", bus.Reply(func(_ context.Context, q QuoteRequest) (Quote, error) {
		if q.SKU == "" {
			return Quote{}, &bus.ReplyError{Code: "no_sku", Text: "a quote is for something"}
		}
		return Quote{Cents: 1299}, nil
	}))
	over := make(chan error)
	go func() { over <- r.Run(ctx) }()

	q, err := bus.Request[Quote](ctx, b, "quotes", QuoteRequest{SKU: "sku-1"})
	fmt.Println(q.Cents, err)
	_, err = bus.Request[Quote](ctx, b, "quotes", QuoteRequest{})
	if refused, ok := errors.AsType[*bus.ReplyError](err); ok {
		fmt.Println(refused.Code, "-", refused.Text)
	}
	stop()
	if err := <-over; err != nil {
		log.Fatal(err)
	}
	// Output:
	// 1299 <nil>
	// no_sku - a quote is for something
}

// A reply that no broker would take is a refusal: silence would not tell the caller anything.
func TestReplyThatCannotBePublished(t *testing.T) {
	testlog.Expect(t, "has closed the inbox")
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		b := bus.New(small{driver.Of(bustest.New(t))})
		r := router.New(b, "pricing")
		r.Handle("quotes", bus.Reply(func(context.Context, QuoteRequest) (string, error) {
			tries++
			return strings.Repeat("x", 2000), nil
		}))
		bustest.Run(t, r)
		_, err := bus.Request[string](t.Context(), b, "quotes", QuoteRequest{})
		if refused, ok := errors.AsType[*bus.ReplyError](err); !ok || refused.Code != "failed" || !strings.Contains(refused.Text, "1000") || tries != 1 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
}

// small takes only small messages.
type small struct{ driver.Driver }

func (d small) Capabilities() bus.Capabilities {
	c := d.Driver.Capabilities()
	c.MaxMessage = 1000
	return c
}

// A refusal is final, also if nobody has asked.
func TestRefusalWithoutARequestIsNotRetried(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	synctest.Test(t, func(t *testing.T) {
		tries := 0
		b := answering(t, func(context.Context, QuoteRequest) (Quote, error) {
			tries++
			return Quote{}, &bus.ReplyError{Code: "no_sku"}
		})
		if err := b.Publish(t.Context(), "quotes", QuoteRequest{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if tries != 1 {
			t.Errorf("%d tries", tries)
		}
	})
}

// A reply that comes at the moment in which the caller gives up is his, or it is counted as late.
func TestRepliesAtTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := answering(t, func(context.Context, QuoteRequest) (Quote, error) {
			time.Sleep(time.Second)
			return Quote{}, nil
		}, router.Workers(200))
		if _, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{}); err != nil { // the inbox is open
			t.Fatal(err)
		}
		var mu sync.Mutex
		var group sync.WaitGroup
		got := 0
		for range 100 {
			group.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := bus.Request[Quote](ctx, b, "quotes", QuoteRequest{}); err == nil {
					mu.Lock()
					got++
					mu.Unlock()
				}
			})
		}
		group.Wait()
		time.Sleep(time.Minute)
		synctest.Wait()
		if late := int(b.LateReplies()); got+late != 100 {
			t.Errorf("%d replies came in time and %d late, of 100", got, late)
		}
	})
}

// closing closes its first source when the test says so, like a driver that has lost its broker for
// good.
type closing struct {
	driver.Driver
	subscribed int
	lost       chan struct{}
}

type closingSource struct {
	bus.Source
	lost chan struct{}
}

func (d *closing) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	source, err := d.Driver.Subscribe(ctx, s, o)
	if d.subscribed++; d.subscribed > 1 || err != nil {
		return source, err
	}
	return &closingSource{source, d.lost}, nil
}

func (s *closingSource) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-s.lost:
			cancel()
		case <-ctx.Done():
		}
	}()
	n, err := s.Source.Receive(ctx, dst, maxBytes)
	select {
	case <-s.lost:
		return n, bus.ErrClosed
	default:
		return n, err
	}
}

// When the driver closes an inbox, waiting requests fail at once, and the next request opens
// another.
func TestInboxThatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &closing{Driver: driver.Of(bustest.New(t)), lost: make(chan struct{})}
		b := bus.New(d, bus.WithLogger(slog.New(slog.DiscardHandler)))
		over := make(chan error, 1)
		go func() {
			_, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{})
			over <- err
		}()
		synctest.Wait()
		begun := time.Now()
		close(d.lost)
		if err := <-over; err == nil || time.Since(begun) > time.Second {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		answers := bus.New(d.Driver)
		r := router.New(answers, "pricing")
		r.Handle("quotes", bus.Reply(func(context.Context, QuoteRequest) (Quote, error) { return Quote{7}, nil }))
		bustest.Run(t, r)
		if q, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{}); err != nil || q.Cents != 7 {
			t.Errorf("%v %v", q, err)
		}
	})
}

// troubled is a driver whose inbox cannot reach the broker while trouble says so.
type troubled struct {
	driver.Driver
	observer driver.ConditionObserver
}

func (d *troubled) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	d.observer, _ = o.(driver.ConditionObserver)
	return d.Driver.Subscribe(ctx, s, o)
}

// The log has what lasts at the inbox, and nothing of it after Close.
func TestTroubleOfTheInboxIsLogged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text strings.Builder
		d := &troubled{Driver: driver.Of(bustest.New(t))}
		b := bus.New(d, bus.WithLogger(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelWarn}))))
		if _, err := bus.Request[Quote](t.Context(), b, "quotes", QuoteRequest{}); err == nil {
			t.Error("somebody answers")
		}
		d.observer.Condition(driver.Disconnected, errors.New("no route"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := text.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "no route") || !strings.Contains(got, "topic=replies-") {
			t.Errorf("the log has %q", got)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
		text.Reset()
		d.observer.Condition("parking failed", errors.New("late"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if text.Len() > 0 {
			t.Errorf("after Close the log has %q", text.String())
		}
	})
}
