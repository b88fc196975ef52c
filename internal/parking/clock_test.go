package parking

import (
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func TestClock(t *testing.T) {
	var c Clock
	first := c.Next()
	if now := time.Now().UnixNano(); first > now || first < now-int64(time.Hour) {
		t.Errorf("%d is no time", first)
	}
	for range 1000 {
		if next := c.Next(); next <= first {
			t.Fatalf("%d after %d", next, first)
		} else {
			first = next
		}
	}
	c.Seen(first - 5)
	c.Seen(1 << 62)
	if next := c.Next(); next != 1<<62+1 {
		t.Errorf("%d after a position of a clock that is ahead", next)
	}
}

func TestTokens(t *testing.T) {
	lane := bus.Lane{ID: 2, Epoch: 9}
	want := bus.Token{Lane: 2, Epoch: 9, Position: 7, Parked: true}
	if got := Token(lane, 7); got != want {
		t.Errorf("%+v", got)
	}
	if got := Withdrawn(lane, 7); got != (driver.Parked{Token: want, Withdrawn: true}) {
		t.Errorf("%+v", got)
	}
}
