package driver_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	_ "github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func TestParamsReportEveryMistakeAtOnce(t *testing.T) {
	p, err := driver.ParseParams("kafka://user:hunter2@h1:9092,h2:9092/x?linger=5&n=99&mode=up&flag=maybe&typo=1&n=3&password=hunter2")
	if err != nil {
		t.Fatal(err)
	}
	if d := p.Duration("linger", time.Second, 0, time.Minute); d != time.Second {
		t.Errorf("linger %v", d)
	}
	p.Int("n", 1, 0, 10)
	p.Enum("mode", "fast", "slow")
	p.Bool("flag", true)
	p.Text("password", "")
	if p.Text("absent", "default") != "default" || p.Bool("off", false) {
		t.Error("defaults")
	}
	err = p.Err()
	for _, want := range []string{
		`"linger" is "5": want a duration between 0s and 1m0s`, `"n" is "99": want a whole number between 0 and 10`, `"n" is given 2 times`,
		`"mode" is "up": want one of fast, slow`, `"flag" is "maybe": want one of true, false`, `"typo" is unknown: want one of absent, flag, linger, mode, n, off, password`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\nlacks %q", err, want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") || strings.Contains(p.String(), "hunter2") {
		t.Errorf("a secret is printed: %v", err)
	}
	if !errors.Is(err, bus.ErrInvalid) || bus.IsRetryable(err) {
		t.Error("a bad URL is invalid, and no retry helps")
	}
}

// FuzzParseParams: whatever the URL, no panic and no password in the error.
func FuzzParseParams(f *testing.F) {
	for _, u := range []string{"amqp://u:hunter2@h:bad/", "amqp://u:hun%ter2@h/", "kafka://u:hunter2@[::1", "postgres://u:hunter2@h/?a=%zz", "x:\x7fhunter2@", "a://hunter2@b?;x", "?://u:hunter2@", "a:?x=b://u:hunter2@h"} {
		f.Add(u)
	}
	f.Fuzz(func(t *testing.T, u string) {
		p, err := driver.ParseParams(u)
		if err == nil {
			err = p.Err()
		}
		_, rest, ok := strings.Cut(u, "://u:hunter2")
		if err == nil || !ok || !strings.Contains(rest, "@") || strings.Count(u, "hunter2") > 1 {
			return
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", u, err)
		}
	})
}

// TestNoPasswordIsPrinted: also of URLs in which it is at the wrong place.
func TestNoPasswordIsPrinted(t *testing.T) {
	for _, u := range []string{
		"postgres://u:hunter2/db", "amqp://u:hunter2/", "kafka:u:hunter2", "kafka:u:hunter2@h", "memory:?pwd=hunter2&x=1", "memory:?://u:hunter2@",
		"memory:?capacity=amqp://u:hunter2@h", "kafka://u:hunter2@[::1]:1,[::2]:2", "kafka://h/u:hunter2@x", "kafka://h/#u:hunter2@x",
	} {
		b, err := bus.Open(t.Context(), u)
		if err == nil {
			_ = b.Close()
			t.Errorf("%q was opened", u)
		} else if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", u, err)
		}
	}
	if _, err := driver.ParseParams("kafka://[::1]:1,[::2]:2"); err == nil || !strings.Contains(err.Error(), "more than one IPv6 host") {
		t.Errorf("two IPv6 hosts: %v", err)
	}
}

func TestOpenNamesWhatIsMissing(t *testing.T) {
	for url, want := range map[string]string{
		"":                        "it is empty",
		"kafka://localhost:9092":  `add import _ "github.com/millrace-go/millrace/adapters/kafka"`,
		"kafak://u:hunter2@h":     `unknown scheme "kafak"`,
		"memory:?capacity=lots":   `"capacity" is "lots": want a whole number`,
		"memory://host":           "without slashes",
		"memory:?capacity=1&x=1":  `"x" is unknown: want one of bytes, capacity, retain`,
		"amqp://u:hunter2@h:port": "malformed",
		"://":                     "missing protocol scheme",
	} {
		b, err := bus.Open(context.Background(), url)
		if err == nil {
			_ = b.Close()
			t.Errorf("%q was opened", url)
			continue
		}
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v\nwant %q", url, err, want)
		}
	}
}
