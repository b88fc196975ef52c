package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/millrace-go/millrace/internal/printable"
	"github.com/millrace-go/millrace/poison"
)

// poisonCall is one call of `millrace poison`.
type poisonCall struct {
	url, group     string
	filter         poison.Filter
	all, asJSON    bool
	options        poison.Options
	stdout, stderr io.Writer
}

// poisonActions are the words behind `millrace poison`.
var poisonActions = []struct {
	name, summary string
	run           func(ctx context.Context, q *poison.Queue, c *poisonCall) (int, error)
}{
	{"ls", "list entries", poisonList},
	{"show", "show entries with their messages", poisonShow},
	{"groups", "count entries by handler and class", poisonGroups},
	{"replay", "give messages back to the handlers that refused them", poisonReplay},
	{"drop", "remove entries for good", poisonDrop},
	{"export", "print entries with their messages, one JSON object a line", poisonExport},
}

func poisonCommand(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	switch {
	case len(args) == 0:
		poisonHelp(stderr)
		return exitUsage
	case wantsHelp(args[0]):
		poisonHelp(stdout)
		return exitOK
	}
	for _, a := range poisonActions {
		if a.name != args[0] {
			continue
		}
		c, code, done := parsePoison(a.name, args[1:], stdout, stderr)
		if done {
			return code
		}
		b, err := openBus(ctx, c.url)
		if err != nil {
			fmt.Fprintln(stderr, "millrace poison:", err)
			return codeOf(err)
		}
		defer b.Close()
		q, err := poison.Open(ctx, b, c.group)
		if err == nil {
			code, err = a.run(ctx, q, c)
		}
		if err != nil {
			fmt.Fprintln(stderr, "millrace poison:", err)
			return max(code, exitFail)
		}
		return code
	}
	fmt.Fprintf(stderr, "millrace poison: unknown action %q\n", args[0])
	poisonHelp(stderr)
	return exitUsage
}

func poisonHelp(w io.Writer) {
	fmt.Fprintln(w, "usage: millrace poison ACTION --url URL --group GROUP [flags]")
	for _, a := range poisonActions {
		fmt.Fprintf(w, "  %-7s %s\n", a.name, a.summary)
	}
	fmt.Fprintln(w, "millrace poison ACTION -h shows an action's flags.")
}

func parsePoison(action string, args []string, stdout, stderr io.Writer) (c *poisonCall, code int, done bool) {
	c = &poisonCall{stdout: stdout, stderr: stderr}
	fs := flag.NewFlagSet("poison "+action, flag.ContinueOnError)
	at := addressFlag(fs, "url", "the bus", "kafka://localhost:9092")
	fs.StringVar(&c.group, "group", "", "the `group` of the poison queue; required")
	ids := fs.String("id", "", "choose the entries with these `ids`, their own or their messages', separated by commas")
	f := &c.filter
	fs.StringVar(&f.Topic, "topic", "", "choose entries of this `topic`")
	fs.StringVar(&f.Handler, "handler", "", "choose entries of this `handler`")
	fs.StringVar(&f.Class, "class", "", "choose entries of this `class`, such as permanent or panic")
	fs.StringVar(&f.Key, "key", "", "choose entries of this `key`")
	fs.StringVar(&f.Text, "text", "", "choose entries whose error contains this `text`")
	since := fs.String("since", "", "choose entries poisoned at this `time` or later: RFC 3339, or a duration before now such as 2h")
	until := fs.String("until", "", "choose entries poisoned before this `time`: RFC 3339, or a duration before now such as 2h")
	fs.StringVar(&f.After, "after", "", "choose entries after the one with this `id`")
	fs.IntVar(&f.Limit, "limit", 0, "choose at most this many entries; 0 is all")
	fs.BoolVar(&c.asJSON, "json", false, "print one JSON object a line")
	expect := -1
	changes := action == "replay" || action == "drop"
	if changes {
		fs.IntVar(&expect, "expect", -1, "do nothing unless exactly this many entries match; -1 is any number")
		fs.BoolVar(&c.options.DryRun, "dry-run", false, "count the matching entries, and change nothing")
		fs.BoolVar(&c.all, "all", false, "choose all entries; required if no other flag chooses")
	}
	if code, done = parse(fs, args, stderr); done {
		return nil, code, true
	}
	fail := func(format string, args ...any) (*poisonCall, int, bool) {
		fmt.Fprintf(stderr, "millrace poison "+action+": "+format+"\n", args...)
		return nil, exitUsage, true
	}
	var err error
	if c.url, err = at.get(); err != nil {
		return fail("%v", err)
	}
	if c.group == "" {
		return fail("--group is missing")
	}
	given, empty := map[string]bool{}, "" // an empty value, of a shell's variable say, must not mean all
	fs.Visit(func(f *flag.Flag) {
		if given[f.Name] = true; f.Value.String() == "" {
			empty = f.Name
		}
	})
	if empty != "" {
		return fail("--%s is empty: leave it out to choose all", empty)
	}
	if *ids != "" {
		f.IDs = strings.Split(*ids, ",")
	}
	if f.Since, err = parseTime(*since); err != nil {
		return fail("--since: %v", err)
	}
	if f.Until, err = parseTime(*until); err != nil {
		return fail("--until: %v", err)
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && !f.Since.Before(f.Until) {
		return fail("--since is %s, which is not before --until", *since)
	}
	if given["expect"] && expect < 0 {
		return fail("--expect is %d: want 0 or more", expect)
	}
	if f.Limit < 0 {
		return fail("--limit is %d: want 0 (all) or more", f.Limit)
	}
	if expect >= 0 {
		c.options.Expect = &expect
	}
	chosen := len(f.IDs) > 0 || f.Topic+f.Handler+f.Class+f.Key+f.Text+*since+*until+f.After != "" || f.Limit > 0
	if changes && !c.all && !chosen {
		return fail("no flag chooses entries: add --id, --handler, … or --all")
	}
	c.options.Progress = func(done, total int) { fmt.Fprintf(stderr, "%d of %d\n", done, total) }
	return c, exitOK, false
}

// parseTime reads a time, or an age such as 2h.
func parseTime(text string) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(text); err == nil {
		return time.Now().Add(-d), nil
	}
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return t, fmt.Errorf("%q: want a time like 2026-01-31T12:00:00Z or a duration like 2h", text)
	}
	return t, nil
}

func poisonList(ctx context.Context, q *poison.Queue, c *poisonCall) (int, error) {
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	if !c.asJSON {
		fmt.Fprintln(w, "ID\tTIME\tHANDLER\tCLASS\tTRIES\tKEY\tERROR")
	}
	for e, err := range q.List(ctx, c.filter) {
		if err != nil {
			return exitFail, err
		}
		if c.asJSON {
			r := recordOf(&e)
			r.Message = nil
			if err := json.NewEncoder(c.stdout).Encode(r); err != nil {
				return exitFail, err
			}
			continue
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%q\t%.80q\n", printable.Text(e.ID), e.Time.UTC().Format(time.RFC3339), printable.Text(e.Handler), printable.Text(e.Failure.Class), e.Failure.Attempts, e.Message.Key, e.Failure.Text)
	}
	return exitOK, w.Flush()
}

func poisonShow(ctx context.Context, q *poison.Queue, c *poisonCall) (int, error) {
	n := 0
	found := map[string]bool{}
	for e, err := range q.List(ctx, c.filter) {
		if err != nil {
			return exitFail, err
		}
		found[e.ID], found[e.Message.ID] = true, true
		enc := json.NewEncoder(c.stdout)
		if !c.asJSON {
			enc.SetIndent("", "  ")
		}
		if err := enc.Encode(recordOf(&e)); err != nil {
			return exitFail, err
		}
		n++
	}
	if n == 0 {
		return exitFail, fmt.Errorf("group %q: no entry matches", c.group)
	}
	for _, id := range c.filter.IDs {
		if !found[id] {
			return exitPartly, fmt.Errorf("group %q: no entry %q", c.group, id)
		}
	}
	return exitOK, nil
}

func poisonExport(ctx context.Context, q *poison.Queue, c *poisonCall) (int, error) {
	enc := json.NewEncoder(c.stdout)
	for e, err := range q.List(ctx, c.filter) {
		if err != nil {
			return exitFail, err
		}
		if err := enc.Encode(recordOf(&e)); err != nil {
			return exitFail, err
		}
	}
	return exitOK, nil
}

func poisonGroups(ctx context.Context, q *poison.Queue, c *poisonCall) (int, error) {
	groups, err := q.Summaries(ctx, c.filter)
	if err != nil {
		return exitFail, err
	}
	w := tabwriter.NewWriter(c.stdout, 0, 8, 2, ' ', 0)
	if !c.asJSON {
		fmt.Fprintln(w, "COUNT\tHANDLER\tCLASS\tFIRST\tLAST\tLAST ERROR")
	}
	for _, g := range groups {
		if c.asJSON {
			if err := json.NewEncoder(c.stdout).Encode(g); err != nil {
				return exitFail, err
			}
			continue
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%.80q\n", g.Count, printable.Text(g.Handler), printable.Text(g.Class), g.First.UTC().Format(time.RFC3339), g.Last.UTC().Format(time.RFC3339), g.Text)
	}
	return exitOK, w.Flush()
}

func poisonReplay(ctx context.Context, q *poison.Queue, c *poisonCall) (int, error) {
	r, err := q.Replay(ctx, c.filter, c.options)
	return c.result("replayed", r, err)
}

func poisonDrop(ctx context.Context, q *poison.Queue, c *poisonCall) (int, error) {
	r, err := q.Drop(ctx, c.filter, c.options)
	return c.result("dropped", r, err)
}

// result prints the result. The exit code tells whether the work is complete.
func (c *poisonCall) result(done string, r poison.Result, err error) (int, error) {
	switch {
	case c.asJSON:
		if werr := json.NewEncoder(c.stdout).Encode(r); werr != nil { // a program waits for it
			err = errors.Join(err, fmt.Errorf("print the result: %w", werr))
		}
	case c.options.DryRun:
		fmt.Fprintf(c.stdout, "%d entries match; nothing was %s\n", r.Matched, done)
	default:
		fmt.Fprintf(c.stdout, "%d of %d entries %s\n", r.Done, r.Matched, done)
	}
	missing := len(c.filter.IDs) - r.Matched // an id may belong to a message that was poisoned twice
	switch {
	case err == nil && missing > 0 && r.Matched == 0:
		return exitFail, fmt.Errorf("group %q: no entry matches", c.group)
	case err == nil && missing > 0:
		return exitPartly, fmt.Errorf("group %q: no entry matches %d of the ids", c.group, missing)
	case err != nil && r.Done == 0:
		return exitFail, err
	case err != nil:
		return exitPartly, err
	case !c.options.DryRun && r.Done < r.Matched:
		return exitPartly, fmt.Errorf("%d entries were replayed or dropped by somebody else meanwhile", r.Matched-r.Done)
	}
	return exitOK, nil
}
