// Command benchmarks compares Millrace with Watermill and with the raw clients: same broker, same
// durability, same payloads, in turn, in one run. The ratio counts.
//
//	. ../.brokers/env && go run . -paths memory,kafka
//
// Each message carries its number, and a round is counted only if every number arrived exactly
// once. A library that fails on a path has no figure there; the other paths run, and the program
// ends with an error.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"time"
)

var (
	paths     = flag.String("paths", "", "run the paths that begin with one of these, separated by commas; all by default")
	rounds    = flag.Int("rounds", 3, "rounds of each path; the medians are printed")
	least     = flag.Duration("least", 2*time.Second, "a round lasts about this long")
	size      = flag.Int("size", 256, "bytes of a payload")
	queueType = flag.String("queue", "quorum", "type of RabbitMQ's queues, on all sides: quorum or classic")
	asJSON    = flag.Bool("json", false, "print one object a line")
	scaling   = flag.String("scaling", "", "instead of the paths: measure how Millrace scales, and draw plots into this `directory`; -paths chooses curves")
	markdown  = flag.Bool("markdown", false, "print tables for a Markdown page")
)

func main() {
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	if *size < minSize || *size > maxSize {
		return fmt.Errorf("-size is %d: want %d to %d", *size, minSize, maxSize)
	}
	if *rounds < 1 || *least <= 0 {
		return fmt.Errorf("-rounds is %d, -least %v: want at least 1, and more than 0", *rounds, *least)
	}
	if *scaling != "" {
		return scale(ctx, *scaling, *paths)
	}
	var chosen []path
	for _, p := range allPaths() {
		if hasPrefix(p.name, *paths) {
			chosen = append(chosen, p)
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no path begins with %q", *paths)
	}
	r := newReport()
	failed := 0
	for _, p := range chosen {
		results, err := p.measure(ctx)
		if ctx.Err() != nil {
			return err
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			failed++
		}
		r.add(p, results)
	}
	if failed > 0 {
		return fmt.Errorf("on %d of %d paths, a library failed", failed, len(chosen))
	}
	return nil
}
