package bus_test

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func TestIDsAreUniqueOrderedUUIDs(t *testing.T) {
	last := ""
	for range 100_000 {
		id := bus.NewID()
		if len(id) != 36 || id[14] != '7' || !strings.ContainsRune("89ab", rune(id[19])) {
			t.Fatalf("%q is no UUID of version 7", id)
		}
		if id <= last {
			t.Fatalf("%q came after %q", id, last)
		}
		last = id
	}
	// The first 48 bits are the time in milliseconds.
	var ms int64
	if _, err := fmt.Sscanf(strings.ReplaceAll(last, "-", "")[:12], "%x", &ms); err != nil {
		t.Fatal(err)
	}
	if age := time.Since(time.UnixMilli(ms)).Abs(); age > time.Minute {
		t.Errorf("the id's time is %v away", age)
	}
}

func TestHeaders(t *testing.T) {
	var h bus.Headers
	h.Add("a", "1")
	h.Add("b", "2")
	h.Add("a", "3")
	if h.Get("a") != "1" || h.Get("none") != "" || !slices.Equal(h.Values("a"), []string{"1", "3"}) {
		t.Errorf("%v", h)
	}
	h.Set("a", "4")
	if want := (bus.Headers{{Name: "a", Value: "4"}, {Name: "b", Value: "2"}}); !slices.Equal(h, want) {
		t.Errorf("after Set: %v", h)
	}
	h.Set("c", "5")
	h.Del("a")
	if want := (bus.Headers{{Name: "b", Value: "2"}, {Name: "c", Value: "5"}}); !slices.Equal(h, want) {
		t.Errorf("after Del: %v", h)
	}
}

func TestCloneSharesNothing(t *testing.T) {
	m := &bus.Message{ID: "m", Payload: []byte("abc"), Headers: bus.Headers{{Name: "h", Value: "v"}}}
	c := m.Clone()
	c.Payload[0] = 'X'
	c.Headers[0].Value = "X"
	if string(m.Payload) != "abc" || m.Headers[0].Value != "v" {
		t.Error("the clone shares memory")
	}
	if (&bus.Message{}).Clone().Payload != nil || (&bus.Message{Payload: []byte{}}).Clone().Payload == nil {
		t.Error("nil and empty payloads must stay apart")
	}
}

func TestNothingConfidentialIsPrinted(t *testing.T) {
	m := &bus.Message{ID: "m1", Key: "secret-key", Payload: []byte("secret-body"), Headers: bus.Headers{{Name: "auth", Value: "secret-token"}}}
	for _, text := range []string{m.String(), fmt.Sprintf("%v", m), fmt.Sprintf("%+v", *m), fmt.Sprintf("%v", bus.Delivery{Message: m})} {
		if strings.Contains(text, "secret") || !strings.Contains(text, "m1") {
			t.Errorf("printed as %s", text)
		}
	}
}

func TestSizeCountsEverything(t *testing.T) {
	empty := (&bus.Message{}).Size()
	full := (&bus.Message{
		ID: "12", Key: "345", Type: "t", Source: "s", Subject: "u", ContentType: "c", Payload: make([]byte, 100),
		Headers: bus.Headers{{Name: "n", Value: "v"}},
	}).Size()
	if full < empty+109+2 {
		t.Errorf("%d and %d", empty, full)
	}
}

// TestCheckID: ids as they may arrive; a letter beyond ASCII does not hide what follows it.
func TestCheckID(t *testing.T) {
	for _, id := range []string{"1", "größe 7", strings.Repeat("x", 255), bus.NewID()} {
		if err := engine.CheckID(id); err != nil || driver.IsTransientID(id) {
			t.Errorf("%.20q: %v", id, err)
		}
	}
	for _, id := range []string{"", "a\xff", "a\x00", "é\x00", "é\x7f", strings.Repeat("x", 256)} {
		if err := engine.CheckID(id); !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%.20q: %v", id, err)
		}
	}
	id := driver.TransientID(strings.Repeat("t", 200), bus.Token{Lane: 9999, Epoch: math.MaxUint64, Position: math.MaxInt64})
	if err := engine.CheckID(id); err != nil || !driver.IsTransientID(id) {
		t.Errorf("%q: %v", id, err)
	}
}
