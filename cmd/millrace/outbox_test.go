package main

import (
	"context"
	"database/sql"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/outbox"
	"github.com/millrace-go/millrace/router"
)

func TestRelayAndOutbox(t *testing.T) {
	path := filepath.Join(t.TempDir(), "shop.db")
	url := "sqlite:" + path
	call := func(want int, args ...string) (stdout, stderr string) {
		t.Helper()
		var o, e strings.Builder
		if code := run(t.Context(), args, &o, &e); code != want {
			t.Fatalf("millrace %v: exit %d, want %d\n%s%s", args, code, want, o.String(), e.String())
		}
		return o.String(), e.String()
	}
	if _, text := call(exitUsage, "outbox", "status", "--url", url); !strings.Contains(text, "no such file") {
		t.Error(text)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, text := call(exitFail, "relay", "--from", url, "--to", "memory:"); !strings.Contains(text, "call Migrate") {
		t.Error(text)
	}
	call(exitOK, "outbox", "migrate", "--url", url)
	db, err := sql.Open("sqlite", "file:"+path+"?_txlock=immediate&_busy_timeout=10000")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	o, err := outbox.New(outbox.SQLite, outbox.Config{})
	if err != nil {
		t.Fatal(err)
	}
	err = outbox.Do(t.Context(), o, outbox.SQL(db, nil), func(_ *sql.Tx, p bus.Publisher) error {
		return p.Publish(t.Context(), "orders", map[string]int{"id": 7})
	})
	if err != nil {
		t.Fatal(err)
	}
	if text, _ := call(exitOK, "outbox", "status", "--url", url); !strings.Contains(text, "pending  1,") {
		t.Error(text)
	}
	if text, _ := call(exitOK, "outbox", "status", "--json", "--url", url); !strings.Contains(text, `"pending":1`) {
		t.Error(text)
	}
	b, err := bus.Open(t.Context(), "memory:relay-test")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ctx, stop := context.WithCancel(t.Context())
	r := router.New(b, "g")
	came := make(chan map[string]int, 1)
	router.On(r, "orders", func(_ context.Context, e map[string]int) error { came <- e; return nil })
	over := make(chan error)
	go func() { over <- r.Run(ctx) }()
	var stderr strings.Builder
	exit := make(chan int)
	go func() { exit <- run(ctx, []string{"relay", "--from", url, "--to", "memory:relay-test"}, nil, &stderr) }()
	if e := <-came; e["id"] != 7 {
		t.Error(e)
	}
	stop()
	if code := <-exit; code != exitOK || !strings.Contains(stderr.String(), "sent=1") {
		t.Errorf("exit %d: %s", code, stderr.String())
	}
	if err := <-over; err != nil {
		t.Error(err)
	}
	if text, _ := call(exitOK, "outbox", "status", "--url", url); !strings.Contains(text, "pending  0,") {
		t.Error(text)
	}
	if text, _ := call(exitOK, "outbox", "retry", "--url", url, "--broker", "memory:"); text != "0 messages go out again\n" {
		t.Error(text)
	}
	if text, _ := call(exitOK, "outbox", "prune", "--url", url); text != "0 handled ids forgotten\n" {
		t.Error(text)
	}
}

func TestOutboxUsage(t *testing.T) {
	for _, tc := range []struct{ args, stderr string }{
		{"outbox", `"": want one of status, retry, prune, migrate`},
		{"outbox nonsense", `"nonsense": want one of`},
		{"outbox status", "--url is missing"},
		{"outbox status --url kafka://x", `the scheme is "kafka": want postgres, mysql, mariadb or sqlite`},
		{"outbox status --url mysql://u:secret@/", "want mysql://user:password@host:3306/database"},
		{"outbox status --url postgres://u:secret@127.0.0.1:1/d", "u:xxxxx@127.0.0.1:1"},
		{"relay --to memory:", "--from or --to is missing"},
	} {
		var stdout, stderr strings.Builder
		code := run(t.Context(), strings.Fields(tc.args), &stdout, &stderr)
		if code != exitUsage || !strings.Contains(stderr.String(), tc.stderr) || strings.Contains(stderr.String(), "secret") {
			t.Errorf("millrace %s: exit %d\n%s", tc.args, code, stderr.String())
		}
	}
}
