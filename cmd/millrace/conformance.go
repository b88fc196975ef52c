package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"regexp"
	"time"

	_ "github.com/millrace-go/millrace/adapters/all" // any broker may be checked
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/conformance"
)

func conformanceCommand(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("conformance", flag.ContinueOnError)
	broker := addressFlag(fs, "url", "the broker to check", "kafka://localhost:9092?partitions=8")
	run := fs.String("run", "", "run only the checks that match this `regexp`")
	timeout := fs.Duration("timeout", time.Minute, "the longest time of each check")
	asJSON := fs.Bool("json", false, "print one JSON object a line: test, status, detail, seconds")
	list := fs.Bool("list", false, "list the checks")
	if code, done := parse(fs, args, stderr); done {
		return code
	}
	if *list {
		for _, name := range conformance.Checks() {
			fmt.Fprintln(stdout, name)
		}
		return exitOK
	}
	re, err := regexp.Compile(*run)
	if err != nil {
		fmt.Fprintln(stderr, "millrace conformance: --run:", err)
		return exitUsage
	}
	url, err := broker.get()
	if err != nil {
		fmt.Fprintln(stderr, "millrace conformance:", err)
		return exitUsage
	}
	if url == "memory:" {
		url = "memory:conformance" // the suite opens several buses, which must share their messages
	}
	b, err := bus.Open(ctx, url) // a wrong URL is one error, not one for each check
	if err != nil {
		fmt.Fprintln(stderr, "millrace conformance:", err)
		return exitUsage
	}
	defer b.Close()
	return report(conformance.Verify(ctx, conformance.URL(url), conformance.Options{Run: re, Timeout: *timeout}), *asJSON, stdout, stderr)
}

// report prints results as they come, and a summary.
func report(results func(func(conformance.Result) bool), asJSON bool, stdout, stderr io.Writer) int {
	counts := map[conformance.Status]int{}
	for r := range results {
		counts[r.Status]++
		if asJSON {
			if err := json.NewEncoder(stdout).Encode(r); err != nil {
				fmt.Fprintln(stderr, "millrace conformance:", err)
				return exitFail
			}
			continue
		}
		fmt.Fprintln(stdout, r)
	}
	passed, failed, lacking := counts[conformance.Pass], counts[conformance.Fail], counts[conformance.Lacking]
	if !asJSON {
		fmt.Fprintf(stdout, "%d passed, %d failed, %d lacking\n", passed, failed, lacking)
	}
	switch {
	case failed > 0:
		return exitFail
	case passed == 0:
		fmt.Fprintln(stderr, "millrace conformance: no check ran and passed")
		return exitFail
	}
	return exitOK
}
