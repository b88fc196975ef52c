package bustest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/bustest"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// TestPoison: a poisoned message can be replayed and dropped, also if its key waits.
func TestPoison(t *testing.T) {
	testlog.Expect(t, "message poisoned")
	synctest.Test(t, func(t *testing.T) {
		b := bustest.New(t)
		bad, handled := true, 0
		r := router.New(b, "g", router.Policy{KeyWaits: true})
		r.HandleFunc("t", func(context.Context, *bus.Message) error {
			if bad {
				return bus.Permanent(errors.New("bad"))
			}
			handled++
			return nil
		})
		bustest.Run(t, r)
		for _, key := range []string{"a", "b"} {
			if err := b.Publish(t.Context(), "t", "x", bus.WithKey(key)); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		bad = false
		q, err := poison.Open(t.Context(), b, "g")
		if err != nil {
			t.Fatal(err)
		}
		if r, err := q.Drop(t.Context(), poison.Filter{Key: "a"}, poison.Options{}); err != nil || r.Done != 1 {
			t.Errorf("drop: %+v, %v", r, err)
		}
		if r, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{}); err != nil || r.Done != 1 {
			t.Errorf("replay: %+v, %v", r, err)
		}
		synctest.Wait()
		if handled != 1 {
			t.Errorf("%d were handled, want the one that was replayed", handled)
		}
	})
}

// TestUnreadable: a record that cannot be read is not replayed, and says so; it can be dropped.
func TestUnreadable(t *testing.T) {
	b := bustest.New(t)
	store, err := driver.Of(b).Poison(t.Context(), "g")
	if err != nil {
		t.Fatal(err)
	}
	e := driver.PoisonEntry{ID: "e", Message: &bus.Message{ID: "e", Payload: []byte("?")}, Topic: "t", Group: "g", Waits: true, Failure: bus.Failure{Class: driver.Unreadable}}
	if err := store.Put(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	q, err := poison.Open(t.Context(), b, "g")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := q.Replay(t.Context(), poison.Filter{}, poison.Options{}); !errors.Is(err, bus.ErrInvalid) || r.Matched != 1 || r.Done != 0 {
		t.Errorf("replay: %+v, %v", r, err)
	}
	if r, err := q.Drop(t.Context(), poison.Filter{}, poison.Options{}); err != nil || r.Done != 1 {
		t.Errorf("drop: %+v, %v", r, err)
	}
}
