package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// outboxActions are the words behind `millrace outbox`.
var outboxActions = []struct{ name, summary string }{
	{"status", "count waiting messages, parked messages and relays"},
	{"retry", "put refused messages back into the outbox"},
	{"prune", "forget old ids of handled messages"},
	{"migrate", "create the tables, or bring them to this program's version"},
}

func outboxHelp(w io.Writer) {
	fmt.Fprintln(w, "usage: millrace outbox ACTION --url URL [flags]")
	for _, a := range outboxActions {
		fmt.Fprintf(w, "  %-8s %s\n", a.name, a.summary)
	}
	fmt.Fprintln(w, "millrace outbox ACTION -h shows an action's flags.")
}

func outboxCommand(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	switch {
	case len(args) == 0:
		outboxHelp(stderr)
		return exitUsage
	case wantsHelp(args[0]):
		outboxHelp(stdout)
		return exitOK
	}
	action, args := args[0], args[1:]
	fs := flag.NewFlagSet("outbox "+action, flag.ContinueOnError)
	at := addressFlag(fs, "url", "the outbox's database", "postgres://localhost/shop")
	var t tables
	t.flags(fs)
	var asJSON bool
	var broker *address
	var retention time.Duration
	var run func(context.Context, *database) error
	switch action {
	case "status":
		fs.BoolVar(&asJSON, "json", false, "print one JSON object")
		run = func(ctx context.Context, d *database) error { return printStatus(ctx, d, asJSON, stdout) }
	case "retry":
		broker = addressFlag(fs, "broker", "a broker whose poison store's messages are put back, too", "kafka://localhost:9092")
		run = func(ctx context.Context, d *database) error {
			if !broker.isGiven() { // only parked ones
				return retry(ctx, d, "", stdout)
			}
			url, err := broker.get()
			if err != nil {
				return err
			}
			return retry(ctx, d, url, stdout)
		}
	case "prune":
		fs.DurationVar(&retention, "retention", 0, "forget handled ids older than this; 0 is the default of 8 days")
		run = func(ctx context.Context, d *database) error {
			n, err := d.outbox.Prune(ctx, d.db)
			fmt.Fprintln(stdout, n, "handled ids forgotten")
			return err
		}
	case "migrate":
		run = func(ctx context.Context, d *database) error { return d.outbox.Migrate(ctx, d.db) }
	default:
		fmt.Fprintf(stderr, "millrace outbox: unknown action %q\n", action)
		outboxHelp(stderr)
		return exitUsage
	}
	if code, done := parse(fs, args, stderr); done {
		return code
	}
	url, err := at.get()
	if err != nil {
		fmt.Fprintf(stderr, "millrace outbox %s: %v\n", action, err)
		return exitUsage
	}
	t.retention = retention
	d, err := openDatabase(ctx, url, t)
	if err != nil {
		fmt.Fprintf(stderr, "millrace outbox %s: %v\n", action, err)
		return exitUsage
	}
	defer d.close()
	if err := run(ctx, d); err != nil {
		fmt.Fprintf(stderr, "millrace outbox %s: %v\n", action, err)
		return exitFail
	}
	return exitOK
}

func printStatus(ctx context.Context, d *database, asJSON bool, stdout io.Writer) error {
	s, err := d.outbox.Status(ctx, d.db)
	if err != nil {
		return err
	}
	if asJSON {
		return json.NewEncoder(stdout).Encode(map[string]any{
			"pending": s.Pending, "oldest_seconds": s.Oldest.Seconds(), "parked": s.Parked, "relays": s.Relays, "inbox": s.Inbox,
		})
	}
	fmt.Fprintf(stdout, "pending  %d, the oldest for %v\nparked   %d\nrelays   %d\ninbox    %d ids\n", s.Pending, s.Oldest.Round(time.Millisecond), s.Parked, s.Relays, s.Inbox)
	return nil
}

func retry(ctx context.Context, d *database, broker string, stdout io.Writer) error {
	var b *bus.Bus
	if broker != "" {
		var err error
		if b, err = bus.Open(ctx, broker); err != nil {
			return err
		}
		defer b.Close()
	}
	n, err := d.outbox.Retry(ctx, d.db, b)
	fmt.Fprintln(stdout, n, "messages go out again")
	return err
}
