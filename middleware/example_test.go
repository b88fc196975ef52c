package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/middleware"
	"github.com/millrace-go/millrace/router"
)

// serve runs a router on a bus in memory with one handler, which calls stop when it has done its
// work.
func serve(messages []*bus.Message, mw bus.Middleware, handle func(ctx context.Context, m *bus.Message, stop func()) error, opts ...router.Option) {
	ctx, stop := context.WithCancel(context.Background())
	b, err := memory.Open(memory.Config{}, bus.WithLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	if err := b.PublishMessages(ctx, "orders", messages...); err != nil {
		log.Fatal(err)
	}
	r := router.New(b, "billing", router.Workers(1))
	r.Use(mw)
	r.HandleFunc("orders", func(ctx context.Context, m *bus.Message) error { return handle(ctx, m, stop) }, opts...)
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// handle calls a handler as code without a router does.
func handle(mw bus.Middleware, m *bus.Message, h bus.HandlerFunc) error {
	return mw(h).Handle(context.Background(), m)
}

func ExampleLogging() {
	text := slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey || a.Key == "took" { // which differ from run to run
			return slog.Attr{}
		}
		return a
	}})
	serve([]*bus.Message{{ID: "o1", Type: "placed"}}, middleware.Logging(slog.New(text)), func(_ context.Context, _ *bus.Message, stop func()) error {
		stop()
		return nil
	})
	// Output: level=DEBUG msg=handled handler=billing/orders topic=orders group=billing messages=1 attempt=1 id=o1 type=placed
}

// A message published by a handler names its cause and its trace.
func ExampleCorrelation() {
	b, err := memory.Open(memory.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	ctx, stop := context.WithCancel(context.Background())
	r := router.New(b, "billing")
	r.Use(middleware.Correlation())
	r.HandleFunc("orders", func(ctx context.Context, _ *bus.Message) error { return bus.Emit(ctx, "payments", "pay") })
	r.HandleFunc("payments", func(_ context.Context, m *bus.Message) error {
		fmt.Println(m.Headers)
		stop()
		return nil
	})
	if err := b.PublishMessages(ctx, "orders", &bus.Message{ID: "o1", Headers: bus.Headers{{Name: "traceparent", Value: "00-4bf9…-01"}}}); err != nil {
		log.Fatal(err)
	}
	if err := r.Run(ctx); err != nil {
		log.Fatal(err)
	}
	// Output: [{correlationid o1} {causationid o1} {traceparent 00-4bf9…-01}]
}

func ExampleFilter() {
	mine := middleware.Filter(func(m *bus.Message) bool { return m.Headers.Get("tenant") == "acme" })
	serve([]*bus.Message{
		{ID: "o1", Key: "k", Headers: bus.Headers{{Name: "tenant", Value: "other"}}},
		{ID: "o2", Key: "k", Headers: bus.Headers{{Name: "tenant", Value: "acme"}}},
	}, mine, func(_ context.Context, m *bus.Message, stop func()) error {
		fmt.Println(m.ID)
		stop()
		return nil
	})
	// Output: o2
}

func ExampleValidate() {
	signed := middleware.Validate(func(_ context.Context, m *bus.Message) error {
		if m.Headers.Get("signature") == "" {
			return errors.New("it is not signed")
		}
		return nil
	})
	err := handle(signed, &bus.Message{}, nil)
	fmt.Println(err, "- to the poison queue at once:", bus.IsPermanent(err))
	// Output: it is not signed - to the poison queue at once: true
}

func ExampleThrottle() {
	rate := middleware.Throttle(1000, 1) // of a partner's API, over all handlers that are given the value
	start := time.Now()
	for range 11 {
		if err := handle(rate, &bus.Message{}, func(context.Context, *bus.Message) error { return nil }); err != nil {
			log.Fatal(err)
		}
	}
	fmt.Println("at least 10 ms:", time.Since(start) >= 10*time.Millisecond)
	// Output: at least 10 ms: true
}

func ExampleThrottleBy() {
	tenant := func(m *bus.Message) string { return m.Headers.Get("tenant") }
	fair := middleware.ThrottleBy(tenant, 1, 1) // one a second for each tenant
	for _, name := range []string{"a", "b", "c"} {
		m := &bus.Message{Headers: bus.Headers{{Name: "tenant", Value: name}}}
		if err := handle(fair, m, func(context.Context, *bus.Message) error { fmt.Println(name); return nil }); err != nil {
			log.Fatal(err)
		}
	}
	// Output:
	// a
	// b
	// c
}

func ExampleConcurrencyLimit() {
	pool := middleware.ConcurrencyLimit(2) // router.Use(pool) for all handlers that use the small pool
	err := handle(pool, &bus.Message{}, func(context.Context, *bus.Message) error {
		fmt.Println("one of at most two")
		return nil
	})
	fmt.Println(err)
	// Output:
	// one of at most two
	// <nil>
}

func ExampleRecover() {
	err := handle(middleware.Recover(), &bus.Message{}, func(context.Context, *bus.Message) error { panic("out of stock") })
	p, ok := errors.AsType[*router.PanicError](err)
	fmt.Println(err, ok, p.Stack != "")
	// Output: panic: out of stock true true
}

func ExampleTimeout() {
	err := handle(middleware.Timeout(time.Millisecond), &bus.Message{}, func(ctx context.Context, _ *bus.Message) error {
		<-ctx.Done() // a query that heeds its context
		return ctx.Err()
	})
	fmt.Println(err, errors.Is(err, context.DeadlineExceeded))
	// Output: context deadline exceeded true
}

func ExampleRetry() {
	retry := middleware.Retry(router.Exponential(time.Millisecond, 100*time.Millisecond, 5))
	tries := 0
	err := handle(retry, &bus.Message{}, func(context.Context, *bus.Message) error {
		if tries++; tries < 3 {
			return errors.New("deadlock found")
		}
		return nil
	})
	fmt.Println(err, "after", tries, "tries")
	// Output: <nil> after 3 tries
}

func ExampleIgnore() {
	gone := errors.New("the customer is gone")
	err := handle(middleware.Ignore(router.Is(gone)), &bus.Message{}, func(context.Context, *bus.Message) error {
		return fmt.Errorf("send mail: %w", gone)
	})
	fmt.Println(err, "- settled as if handled:", bus.IsIgnored(err))
	// Output: send mail: the customer is gone - settled as if handled: true
}

// What the fraud check refuses goes to a queue of its own, beside the group's poison queue.
func ExamplePoison() {
	ctx := context.Background()
	b, err := memory.Open(memory.Config{})
	if err != nil {
		log.Fatal(err)
	}
	defer b.Close()
	review, err := driver.Of(b).Poison(ctx, "fraud-review")
	if err != nil {
		log.Fatal(err)
	}
	suspicious := errors.New("suspicious")
	_ = handle(middleware.Poison(review, router.Is(suspicious)), &bus.Message{ID: "o1"}, func(context.Context, *bus.Message) error {
		return suspicious
	})
	for e, err := range review.List(ctx) {
		fmt.Println(e.Message.ID, e.Failure.Text, err)
	}
	// Output: o1 suspicious <nil>
}

func ExampleDeduplicate() {
	once := middleware.Deduplicate(&middleware.DedupMemory{TTL: 24 * time.Hour, Entries: 1_000_000}, nil)
	tries := 0
	serve([]*bus.Message{{ID: "o1", Key: "k"}, {ID: "o1", Key: "k"}, {ID: "o2", Key: "k"}}, once, func(_ context.Context, m *bus.Message, stop func()) error {
		if tries++; tries == 1 {
			return errors.New("a failure is not remembered")
		}
		fmt.Println(m.ID, "in try", tries)
		if m.ID == "o2" {
			stop()
		}
		return nil
	}, router.Policy{Retry: router.Schedule{time.Millisecond}})
	// Output:
	// o1 in try 2
	// o2 in try 3
}

func ExampleChaos() {
	run := func() (outcomes []bool) {
		chaos := middleware.Chaos(middleware.ChaosConfig{Seed: 42, Fail: 0.5}) // router.Use(chaos), last, in a test of the service
		for range 20 {
			err := handle(chaos, &bus.Message{}, func(context.Context, *bus.Message) error { return nil })
			outcomes = append(outcomes, errors.Is(err, middleware.ErrChaos))
		}
		return outcomes
	}
	fmt.Println("the same seed, the same failures:", slices.Equal(run(), run()))
	// Output: the same seed, the same failures: true
}
