package main

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"time"
)

// report prints one line for each path.
type report struct{ head map[bool]bool }

func newReport() *report { return &report{head: map[bool]bool{}} }

// median is by rate, and for latencies each figure by itself.
func median(results []result) result {
	if len(results) == 0 {
		return result{}
	}
	sorted := slices.Clone(results)
	slices.SortFunc(sorted, func(a, b result) int { return int(a.rate - b.rate) })
	m := sorted[len(sorted)/2]
	of := func(f func(result) time.Duration) time.Duration {
		all := make([]time.Duration, len(results))
		for i, r := range results {
			all[i] = f(r)
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	m.p50, m.p99, m.p999 = of(func(r result) time.Duration { return r.p50 }), of(func(r result) time.Duration { return r.p99 }), of(func(r result) time.Duration { return r.p999 })
	return m
}

// spread is how far apart the rounds were, as a share of the median.
func spread(results []result) float64 {
	if len(results) == 0 {
		return 0
	}
	by := func(a, b result) int { return int(a.rate - b.rate) }
	return (slices.MaxFunc(results, by).rate - slices.MinFunc(results, by).rate) / median(results).rate
}

func (r *report) add(p path, results map[string][]result) {
	if *asJSON {
		r.addJSON(p, results)
		return
	}
	m, w, raw := median(results["millrace"]), median(results["watermill"]), median(results["raw"])
	separator := map[bool]string{true: " | ", false: "  "}[*markdown]
	line := func(cells ...string) {
		if *markdown {
			fmt.Print("| ")
		}
		for i, c := range cells {
			if i > 0 {
				fmt.Print(separator)
			}
			if i == 0 {
				fmt.Printf("%-26s", c)
			} else {
				fmt.Printf("%12s", c)
			}
		}
		if *markdown {
			fmt.Print(" |")
		}
		fmt.Println()
	}
	late := p.kind == latency
	if !r.head[late] {
		r.head[late] = true
		cells := []string{"msg/s", "Millrace", "Watermill", "raw", "× Watermill", "× raw", "spread", "CPU/msg", "allocs/msg", "B/msg", "resident", "others"}
		if late {
			cells = []string{"p50 / p99 / p99.9", "Millrace", "", "", "Watermill", "", "", "raw", "", ""}
		}
		fmt.Println()
		line(cells...)
		if *markdown {
			for range cells {
				fmt.Print("|---")
			}
			fmt.Println("|")
		}
	}
	if late {
		t := func(d time.Duration) string {
			if d == 0 {
				return "–"
			}
			return d.Round(10 * time.Microsecond).String()
		}
		line(p.name, t(m.p50), t(m.p99), t(m.p999), t(w.p50), t(w.p99), t(w.p999), t(raw.p50), t(raw.p99), t(raw.p999))
		return
	}
	rate := func(v float64) string {
		if v == 0 {
			return "–"
		}
		return fmt.Sprintf("%.0f", v)
	}
	ratio := func(to float64) string {
		if to == 0 {
			return "–"
		}
		return fmt.Sprintf("%.2f", m.rate/to)
	}
	others := ""
	for _, lib := range libraries[3:] {
		if rs := results[lib.name]; len(rs) > 0 {
			others = fmt.Sprintf("%s %.0f", lib.name, median(rs).rate)
		}
	}
	line(p.name, rate(m.rate), rate(w.rate), rate(raw.rate), ratio(w.rate), ratio(raw.rate), fmt.Sprintf("%.0f %%", 100*spread(results["millrace"])),
		m.cpu.String(), fmt.Sprintf("%.1f", m.allocs), fmt.Sprintf("%.0f", m.bytes), fmt.Sprintf("%d MiB", m.resident>>20), others)
}

func (r *report) addJSON(p path, results map[string][]result) {
	line := map[string]any{"path": p.name}
	details := map[string]any{}
	for name, rs := range results {
		m := median(rs)
		d := map[string]any{
			"spread": spread(rs), "cpu_ns": m.cpu.Nanoseconds(), "allocs": m.allocs, "bytes": m.bytes, "resident": m.resident,
		}
		if p.kind == latency {
			line[name] = m.p99.Nanoseconds()
			d["p50_ns"], d["p99_ns"], d["p999_ns"] = m.p50.Nanoseconds(), m.p99.Nanoseconds(), m.p999.Nanoseconds()
		} else {
			line[name] = int(m.rate)
		}
		details[name] = d
	}
	line["details"] = details
	_ = json.NewEncoder(os.Stdout).Encode(line)
}
