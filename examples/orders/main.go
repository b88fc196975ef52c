// Command orders replays real orders through the bus that BUS_URL names, and reconciles the result
// to the cent. README.md tells more.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	_ "github.com/millrace-go/millrace/adapters/all" // BUS_URL chooses among all brokers
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

// config holds the settings of the command line and the environment.
type config struct {
	url     string
	n       int
	workers int
	fail    float64
	poison  float64
	state   string
	outbox  string
}

// Exit codes.
const (
	exitOK          = 0
	exitWrong       = 1
	exitUsage       = 2
	exitInterrupted = 130
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	os.Exit(command(ctx, os.Args[1:], os.Getenv("BUS_URL"), os.Stdout, os.Stderr))
}

// command is the program, with its surroundings as arguments.
func command(ctx context.Context, args []string, url string, stdout, stderr io.Writer) int {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	c := config{url: cmp.Or(url, "memory:")}
	flags := flag.NewFlagSet("orders", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&c.n, "n", 0, "replay only the first `N` orders; 0 is all")
	flags.IntVar(&c.workers, "workers", 64, "handler calls at once, for each group and topic")
	flags.Float64Var(&c.fail, "fail", 0, "`share` of handler calls that fail and are retried, from 0 to less than 1")
	flags.Float64Var(&c.poison, "poison", 0, "`share` of orders that loyalty refuses for good, until they are replayed in the end, from 0 to 1")
	flags.StringVar(&c.state, "state", filepath.Join(cache, "millrace-orders"), "`folder` of the file by which an interrupted run goes on")
	flags.StringVar(&c.outbox, "outbox", "", "take the orders into a table of this `database`, an SQLite file or a URL, and publish them from its outbox")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK
	case err != nil:
		return exitUsage
	}
	if c.n < 0 || c.workers < 1 || c.fail < 0 || c.fail >= 1 || c.poison < 0 || c.poison > 1 || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "orders: want -n of 0 or more, -workers of 1 or more, -fail from 0 to less than 1, -poison from 0 to 1, and no other arguments")
		return exitUsage
	}
	orders, err := loadOrders(c.n)
	if err != nil {
		fmt.Fprintln(stderr, "orders: -n:", err)
		return exitUsage
	}
	stderr = &lockedWriter{w: stderr}
	books, err := c.replay(ctx, orders, stderr)
	switch {
	case errors.Is(err, errInterrupted):
		fmt.Fprintln(stderr, "orders:", err)
		return exitInterrupted
	case err != nil:
		fmt.Fprintln(stderr, "orders:", err)
		return exitWrong
	}
	books.report(stdout, orders)
	if diffs := books.differences(orders); len(diffs) > 0 {
		for _, d := range diffs {
			fmt.Fprintln(stderr, "orders: does not reconcile:", d)
		}
		return exitWrong
	}
	fmt.Fprintln(stdout, "everything reconciles")
	return exitOK
}

// lockedWriter is for progress and whoever else has something to say at the same time.
type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer
}

// Write implements io.Writer.
func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

var errInterrupted = errors.New("interrupted")

// replay sends the orders through the bus, until all services have handled all of them.
func (c config) replay(ctx context.Context, orders []OrderPlaced, stderr io.Writer) (books *Books, err error) {
	b, err := bus.Open(ctx, c.url, bus.WithSource("/shop"))
	if err != nil {
		if ctx.Err() != nil {
			err = errInterrupted
		}
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	durable := b.Driver().Capabilities().Durable
	path := statePath(c.state, c.url)
	var s *State
	if durable {
		var why string
		if s, why, err = loadState(path, len(orders)); err != nil {
			return nil, err
		}
		if why != "" {
			fmt.Fprintln(stderr, "orders:", why)
		}
	}
	if s == nil {
		s = &State{Run: bus.NewID(), Orders: len(orders), Books: newBooks()}
	} else {
		fmt.Fprintf(stderr, "orders: going on with a run of which %d orders were published\n", s.Published)
	}
	var taken *shop
	if c.outbox != "" {
		if taken, err = openShop(ctx, c.outbox, s.Run); err != nil {
			if ctx.Err() != nil {
				err = errInterrupted
			}
			return nil, err
		}
		defer func() { err = errors.Join(err, taken.close()) }()
	}
	s.Clean = false
	if durable {
		if err := s.save(path); err != nil {
			return nil, err
		}
	}
	if err := c.run(ctx, b, s, taken, orders, stderr); err != nil {
		return nil, err
	}
	if paid, loyal, sold := s.Books.handled(); min(paid, loyal, sold) == len(orders) {
		if taken != nil {
			diffs, err := taken.differences(context.WithoutCancel(ctx), s.Books)
			if err != nil {
				return nil, err
			}
			s.Books.Broken = append(s.Books.Broken, diffs...)
		}
		if durable {
			err = os.Remove(path) // the next run is another one
		}
		return s.Books, err
	}
	if !durable {
		return nil, fmt.Errorf("%w: this bus keeps nothing, so the next run starts afresh", errInterrupted)
	}
	s.Clean = true
	if err := s.save(path); err != nil {
		return nil, err
	}
	return nil, fmt.Errorf("%w and drained: run it again to go on", errInterrupted)
}

// run publishes and handles until all is done or ctx ends; then everything has drained.
func (c config) run(ctx context.Context, b *bus.Bus, s *State, taken *shop, orders []OrderPlaced, stderr io.Writer) error {
	ctx, finish := context.WithCancel(ctx)
	defer finish()
	r := router.New(b, "shop", router.Workers(c.workers),
		router.Policy{Retry: router.Exponential(time.Millisecond, 100*time.Millisecond, 1000)})
	if c.fail > 0 {
		r.Use(failing(c.fail))
	}
	topic := "orders-" + s.Run
	refusing := &refusal{share: c.poison}
	s.Books.bind(r, topic, "payments-"+s.Run, refusing)
	if c.poison > 0 {
		r.Go("replay", func(context.Context) error { return refusing.replay(ctx, b, topic, s.Books, orders, stderr) })
	}
	done := func() int {
		paid, loyal, sold := s.Books.handled()
		return min(paid, loyal, sold)
	}
	r.Go("publish", func(context.Context) error {
		// On a broker without a past, a group gets only the messages published after it came.
		if err := r.Ready(ctx); err != nil {
			return nil //nolint:nilerr // Run says why, if it is not just the end
		}
		if taken != nil {
			return taken.take(ctx, topic, orders)
		}
		return publish(ctx, b, topic, s, orders)
	})
	if taken != nil {
		relay, err := taken.outbox.NewRelay(taken.db, b, outbox.RelayConfig{})
		if err != nil {
			return err
		}
		r.Go("relay", relay.Run)
	}
	p := newProgress(stderr, len(orders), done())
	shown := make(chan struct{})
	go func() {
		defer close(shown)
		p.show(ctx, done)
	}()
	go func() {
		for tick := time.NewTicker(10 * time.Millisecond); done() < len(orders); {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		finish()
	}()
	err := r.Run(ctx)
	finish()
	<-shown
	return err
}

// publish publishes the orders not published yet. A batch with an unknown outcome is published
// again: the services know a repeat by its number.
func publish(ctx context.Context, b *bus.Bus, topic string, s *State, orders []OrderPlaced) error {
	const batch = 500
	for s.Published < len(orders) && ctx.Err() == nil {
		next := orders[s.Published:min(s.Published+batch, len(orders))]
		// A batch that has begun is finished, so that a drain leaves no doubt about it.
		err := bus.PublishAll(context.WithoutCancel(ctx), b, topic, next)
		switch {
		case err == nil:
			s.Published += len(next)
		case !bus.IsRetryable(err):
			return err
		}
	}
	return nil
}

// failing makes a share of all calls fail before they do anything.
func failing(share float64) bus.Middleware {
	return bus.Around(func(ctx context.Context, call bus.Call) error {
		if rand.Float64() < share {
			return errors.New("failed on purpose")
		}
		return call.Next(ctx)
	})
}
