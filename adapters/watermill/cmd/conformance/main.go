// Command conformance checks any broker against the contract, as millrace conformance does, and
// knows Watermill's pub/subs beside Millrace's own drivers.
//
//	go run ./cmd/conformance --url 'watermill+kafka://localhost:9092?partitions=8'
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"time"

	_ "github.com/millrace-go/millrace/adapters/all"
	_ "github.com/millrace-go/millrace/adapters/watermill/brokers"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/conformance"
)

// Exit codes.
const (
	exitOK    = 0
	exitFail  = 1 // it ran, and the answer is no
	exitUsage = 2 // it was called wrongly
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("conformance", flag.ContinueOnError)
	fs.SetOutput(stderr)
	url := fs.String("url", "", "the `URL` of the broker to check; required")
	pattern := fs.String("run", "", "run only the checks that match this `regexp`")
	timeout := fs.Duration("timeout", time.Minute, "the longest time of each check")
	asJSON := fs.Bool("json", false, "print one JSON object a line: test, status, detail, seconds")
	if err := fs.Parse(args); errors.Is(err, flag.ErrHelp) {
		return exitOK
	} else if err != nil {
		return exitUsage
	}
	re, err := regexp.Compile(*pattern)
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "conformance: --run:", err)
		return exitUsage
	case *url == "" || fs.NArg() > 0:
		fmt.Fprintln(stderr, "conformance: want --url URL and nothing else, such as --url watermill+kafka://localhost:9092?partitions=8")
		return exitUsage
	case *url == "memory:" || *url == "watermill+gochannel:":
		*url += "conformance" // the suite opens several buses, which must be the same
	}
	b, err := bus.Open(ctx, *url) // a wrong URL is one error, not one for each check
	if err != nil {
		fmt.Fprintln(stderr, "conformance:", err)
		return exitUsage
	}
	defer b.Close()
	counts := map[conformance.Status]int{}
	for r := range conformance.Verify(ctx, conformance.URL(*url), conformance.Options{Run: re, Timeout: *timeout}) {
		counts[r.Status]++
		if !*asJSON {
			fmt.Fprintln(stdout, r)
		} else if err := json.NewEncoder(stdout).Encode(r); err != nil {
			fmt.Fprintln(stderr, "conformance:", err)
			return exitFail
		}
	}
	if !*asJSON {
		fmt.Fprintf(stdout, "%d passed, %d failed, %d lacking\n", counts[conformance.Pass], counts[conformance.Fail], counts[conformance.Lacking])
	}
	if counts[conformance.Fail] > 0 || counts[conformance.Pass] == 0 {
		return exitFail
	}
	return exitOK
}
