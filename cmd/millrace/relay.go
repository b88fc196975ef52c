package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
)

func relayCommand(ctx context.Context, args []string, _, stderr io.Writer) int {
	fs := flag.NewFlagSet("relay", flag.ContinueOnError)
	from := addressFlag(fs, "from", "the outbox's database", "postgres://localhost/shop")
	to := addressFlag(fs, "to", "the broker", "kafka://localhost:9092")
	poll := fs.Duration("poll", outbox.DefaultPoll, "the longest pause between two looks at the outbox")
	lease := fs.Duration("lease", outbox.DefaultLease, "how long the messages of a dead relay wait for another relay")
	batch := fs.Int("batch", outbox.DefaultBatch, "the largest number of messages in one publish call")
	var t tables
	t.flags(fs)
	if code, done := parse(fs, args, stderr); done {
		return code
	}
	source, err := from.get()
	target, err2 := to.get()
	if err = errors.Join(err, err2); err != nil {
		fmt.Fprintln(stderr, "millrace relay:", err)
		return exitUsage
	}
	d, err := openDatabase(ctx, source, t)
	if err != nil {
		fmt.Fprintln(stderr, "millrace relay:", err)
		return exitUsage
	}
	defer d.close()
	log := slog.New(slog.NewTextHandler(stderr, nil))
	b, err := bus.Open(ctx, target, bus.WithLogger(log))
	if err != nil {
		fmt.Fprintln(stderr, "millrace relay:", err)
		return codeOf(err)
	}
	defer b.Close()
	r, err := d.outbox.NewRelay(d.db, b, outbox.RelayConfig{Poll: *poll, Lease: *lease, Batch: *batch, Listen: d.listen})
	if err != nil {
		fmt.Fprintln(stderr, "millrace relay:", err)
		return exitUsage
	}
	log.Info("relaying until it is told to stop")
	err = r.Run(ctx)
	s := r.Stats()
	log.Info("stopped", "sent", s.Sent, "poisoned", s.Poisoned, "parked", s.Parked, "failures", s.Failures, "lease_losses", s.LeaseLosses)
	if err != nil {
		fmt.Fprintln(stderr, "millrace relay:", err)
		return exitFail
	}
	return exitOK
}
