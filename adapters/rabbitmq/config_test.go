package rabbitmq

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

func TestParseURL(t *testing.T) {
	base := Config{
		Hosts: []string{"h"}, VHost: "", Queue: Quorum, Lanes: 8, Heartbeat: 10 * time.Second, Unrouted: 100_000, MaxMessage: 16<<20 - 256<<10,
	}
	with := func(f func(*Config)) Config {
		c := base
		f(&c)
		return c
	}
	for _, c := range []struct {
		url  string
		want Config
	}{
		{"amqp://h", base},
		{"amqp://h/", base},
		{"amqp://h/%2F", with(func(c *Config) { c.VHost = "/" })},
		{"amqp://h/v%2Fw", with(func(c *Config) { c.VHost = "v/w" })},
		{"amqp://u:p%40@h:1,g:2/v?queue=classic&lanes=3&heartbeat=5s&unrouted=7&maxmessage=2048&name=n", Config{
			Hosts: []string{"h:1", "g:2"}, User: "u", Password: "p@", VHost: "v", Name: "n", Queue: Classic, Lanes: 3, Heartbeat: 5 * time.Second,
			Unrouted: 7, MaxMessage: 2048,
		}},
	} {
		got, err := ParseURL(c.url)
		if err != nil {
			t.Errorf("%s: %v", c.url, err)
		} else if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n got %#v\nwant %#v", c.url, got, c.want)
		}
	}
	if c, err := ParseURL("amqps://h"); err != nil || c.TLS == nil {
		t.Errorf("amqps: %v, TLS %v", err, c.TLS)
	}
	for url, want := range map[string]string{
		"amqp:h":                             "host",
		"amqp://":                            "host",
		"amqp:///v":                          "host",
		"amqp://u:secret@h?lanes=65":         `"lanes"`,
		"amqp://u:secret@h?lanes=0":          `"lanes"`,
		"amqp://u:secret@h?queue=stream":     "quorum, classic",
		"amqp://u:secret@h?heartbeat=1s":     `"heartbeat"`,
		"amqp://u:secret@h?heartbeat=2.5":    `"heartbeat"`,
		"amqp://u:secret@h?heartbeat=2500ms": "whole seconds",
		"amqp://u:secret@h?maxmessage=1":     `"maxmessage"`,
		"amqp://u:secret@h?unrouted=0":       `"unrouted"`,
		"amqp://u:secret@h?nonsense=1":       `"nonsense"`,
		"amqp://u:secret@h,,g":               "host",
		"amqp://u:secret@h?ca=x":             "amqps",
		"amqps://u:secret@h?ca=/nowhere":     `"ca"`,
		"amqps://u:secret@h?cert=x":          "cert and key",
	} {
		_, err := ParseURL(url)
		if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v: want ErrInvalid with %s", url, err, want)
		}
	}
}

func TestConfigHidesPassword(t *testing.T) {
	c := Config{Hosts: []string{"h"}, User: "u", Password: "secret"}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "config", c)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "config", c, "pointer", &c)
	j, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	out := fmt.Sprintf("%v %+v %#v %s %v %+v %s %s", c, c, c, c, &c, []Config{c}, j, log.String())
	if strings.Contains(out, "secret") || !strings.Contains(out, "Hosts") {
		t.Error(out)
	}
}

func TestConfigMistakes(t *testing.T) {
	_, err := Open(context.Background(), Config{Queue: "stream", Lanes: 100, Unrouted: -1, MaxMessage: 1, Heartbeat: time.Millisecond})
	for _, want := range []string{"Hosts", "Queue", "Lanes", "Unrouted", "MaxMessage", "heartbeat"} {
		if !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: want ErrInvalid with %s", err, want)
		}
	}
}

func TestOpen(t *testing.T) {
	c := brokerConfig(t)
	ctx := testContext(t)
	wrong := c
	wrong.Password = "not-the-secret"
	start := time.Now()
	_, err := Open(ctx, wrong)
	if err == nil || bus.IsRetryable(err) || strings.Contains(err.Error(), wrong.Password) {
		t.Errorf("wrong password: %v", err)
	}
	wrong = c
	wrong.VHost = "nowhere"
	if _, err := Open(ctx, wrong); err == nil || bus.IsRetryable(err) {
		t.Errorf("wrong vhost: %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v, though waiting is no help", took)
	}
	// Nobody listens there: it waits for the broker to come, within the context.
	wrong = c
	wrong.Hosts = []string{"127.0.0.1:1"}
	short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
	defer cancel()
	if _, err := Open(short, wrong); err == nil || !bus.IsRetryable(err) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("wrong port: %v", err)
	}
	// A second host is tried; names of a cluster come in any order.
	two := c
	two.Hosts = append([]string{"127.0.0.1:1"}, c.Hosts...)
	b, err := Open(ctx, two)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Ping(ctx); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error("second close:", err)
	}
	if err := b.Ping(ctx); !errors.Is(err, bus.ErrClosed) {
		t.Error("ping after close:", err)
	}
}
