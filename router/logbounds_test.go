package router_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

// TestLogOfForeignMessages: publishers choose ids and types. The log has no more than 128 characters of each, and no key or payload.
func TestLogOfForeignMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var text bytes.Buffer
		b := openBus(t)
		r := router.New(b, "g", router.Logger(slog.New(slog.NewTextHandler(&text, &slog.HandlerOptions{Level: slog.LevelDebug}))),
			router.Policy{Retry: router.Schedule{time.Second}})
		r.HandleFunc("t", func(context.Context, *bus.Message) error { return errors.New("no") }, router.Accept("known"))
		stop := run(t, r)
		long := strings.Repeat("x", 250)
		publish(t, b, "t",
			&bus.Message{ID: long, Type: "known", Key: "the-key", Payload: []byte("the-payload")},
			&bus.Message{ID: "2" + long, Type: long, Key: "the-key", Payload: []byte("the-payload")})
		time.Sleep(time.Hour)
		if err := stop(); err != nil {
			t.Error(err)
		}
		got := text.String()
		if !strings.Contains(got, "message poisoned") || !strings.Contains(got, "tried again") {
			t.Fatalf("the log has\n%s", got)
		}
		for _, bad := range []string{strings.Repeat("x", 129), "the-key", "the-payload"} {
			if strings.Contains(got, bad) {
				t.Errorf("the log has %q:\n%s", bad, got)
			}
		}
	})
}
