// Command millrace works with buses from the command line.
//
//	millrace conformance --url kafka://localhost:9092?partitions=8
//
// `millrace help` lists the commands.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/millrace-go/millrace/internal/printable"
)

// Exit codes.
const (
	exitOK     = 0
	exitFail   = 1 // it ran, and the answer is no
	exitUsage  = 2 // it was called wrongly
	exitPartly = 3 // some of it was done
)

// command is one of the program's commands.
type command struct {
	name, summary string
	run           func(ctx context.Context, args []string, stdout, stderr io.Writer) int
}

func commands() []command {
	return []command{
		{"conformance", "check that a broker keeps the contract", conformanceCommand},
		{"poison", "list, replay or drop the entries of a poison queue", poisonCommand},
		{"relay", "publish an outbox's messages on a broker until stopped", relayCommand},
		{"outbox", "maintain an outbox: status, retry, prune, migrate", outboxCommand},
		{"version", "print the version", versionCommand},
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C kills
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run runs a command. All that it prints goes through printable: texts of messages, and errors that
// quote them, must not control a terminal.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	stdout, stderr = printable.Writer(stdout), printable.Writer(stderr)
	switch {
	case len(args) == 0:
		help(stderr)
		return exitUsage
	case wantsHelp(args[0]):
		help(stdout)
		return exitOK
	}
	for _, c := range commands() {
		if c.name == args[0] {
			return c.run(ctx, args[1:], stdout, stderr)
		}
	}
	fmt.Fprintf(stderr, "millrace: unknown command %q\n", args[0])
	help(stderr)
	return exitUsage
}

func wantsHelp(arg string) bool { return arg == "help" || arg == "-h" || arg == "--help" }

func help(w io.Writer) {
	fmt.Fprintln(w, "usage: millrace COMMAND [flags]")
	for _, c := range commands() {
		fmt.Fprintf(w, "  %-13s %s\n", c.name, c.summary)
	}
	fmt.Fprintln(w, "millrace COMMAND -h shows a command's flags.")
}

// parse parses a command's flags; it allows no arguments. If done is true, the command ends with
// code.
func parse(fs *flag.FlagSet, args []string, stderr io.Writer) (code int, done bool) {
	fs.SetOutput(stderr)
	err := fs.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return exitOK, true
	case err != nil:
		return exitUsage, true
	case fs.NArg() > 0:
		fmt.Fprintf(stderr, "millrace %s: unexpected argument %q\n", fs.Name(), fs.Arg(0))
		return exitUsage, true
	}
	return exitOK, false
}

func versionCommand(_ context.Context, _ []string, stdout, _ io.Writer) int {
	version := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		version = info.Main.Version
	}
	fmt.Fprintln(stdout, "millrace", version)
	return exitOK
}
