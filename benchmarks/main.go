// Command benchmarks compares Millrace with Watermill and with the raw clients: same broker, same durability, same
// payloads, in turn, in one run. What counts is the ratio.
//
//	. ../.brokers/env && go run . -paths memory,kafka
//
// Each message carries its number, and a round is counted only if every number arrived exactly once.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"
)

func main() {
	paths := flag.String("paths", "", "run the paths that begin with one of these, separated by commas; all by default")
	rounds := flag.Int("rounds", 3, "rounds of each path; the medians are printed")
	least := flag.Duration("least", 2*time.Second, "a round lasts about this long")
	asJSON := flag.Bool("json", false, "print one object a line")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, *paths, *rounds, *least, *asJSON); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, prefixes string, rounds int, least time.Duration, asJSON bool) error {
	if !asJSON {
		fmt.Printf("%-28s %14s %14s %14s %11s %7s\n", "path (medians, msg/s)", "millrace", "watermill", "raw", "×watermill", "×raw")
	}
	ran := false
	for _, p := range allPaths() {
		if !slices.ContainsFunc(strings.Split(prefixes, ","), func(prefix string) bool { return strings.HasPrefix(p.name, prefix) }) {
			continue
		}
		ran = true
		rates, err := p.measure(ctx, rounds, least)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		report(p.name, rates, asJSON)
	}
	if !ran {
		return fmt.Errorf("no path begins with %q", prefixes)
	}
	return nil
}

// report prints one path; a side that does not exist is left empty.
func report(path string, rates map[string]float64, asJSON bool) {
	if asJSON {
		line := map[string]any{"path": path}
		for side, rate := range rates {
			line[side] = int(rate)
		}
		_ = json.NewEncoder(os.Stdout).Encode(line)
		return
	}
	cell := func(v float64, format string) string {
		if v == 0 {
			return "–"
		}
		return fmt.Sprintf(format, v)
	}
	m, w, r := rates["millrace"], rates["watermill"], rates["raw"]
	ratio := func(to float64) string {
		if to == 0 || m == 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f", m/to)
	}
	fmt.Printf("%-28s %14s %14s %14s %11s %7s\n", path, cell(m, "%.0f"), cell(w, "%.0f"), cell(r, "%.0f"), ratio(w), ratio(r))
}
