package outbox_test

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/outbox"
)

// errLogin is final for a broker's driver, and says nothing of the message.
var errLogin = &bus.Error{Op: "publish", Broker: "faulty", Err: errors.New("password authentication failed"), Definite: true}

// TestLoginFails: messages wait while the relay may not log in, in their order. None is poisoned or
// parked, however often it is tried.
func TestLoginFails(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, _ := newFaulty(t)
	var tries, puts atomic.Int64
	f.judge = func(string, *bus.Message) error {
		if tries.Add(1) < 8 { // more than it takes to believe that a message is refused
			return errLogin
		}
		return nil
	}
	f.put = func(driver.PoisonEntry) error {
		puts.Add(1)
		return errLogin
	}
	s.publish(t, "t", numbered("a", 2)...)
	r, _ := s.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
	if got := f.await(t, 2)["a"]; !slices.Equal(got, []string{"a000", "a001"}) {
		t.Errorf("published %q", got)
	}
	if st := r.Stats(); st.Parked+st.Poisoned > 0 || puts.Load() > 0 {
		t.Errorf("%+v, %d tries of the poison store", st, puts.Load())
	}
}

// TestPoisonStoreLoginFails: a message that the broker refuses is tried again, and not parked,
// while the poison store cannot be used.
func TestPoisonStoreLoginFails(t *testing.T) {
	s := newStore(t, outbox.SQLite)
	f, _ := newFaulty(t)
	var puts atomic.Int64
	f.judge = func(string, *bus.Message) error { return errRefused }
	f.put = func(driver.PoisonEntry) error {
		if puts.Add(1) < 2 {
			return errLogin
		}
		return nil
	}
	s.publish(t, "t", numbered("a", 1)...)
	r, _ := s.runRelay(t, silent(f), outbox.RelayConfig{Poll: 10 * time.Millisecond})
	counts(t, r, func(s outbox.RelayStats) bool { return s.Parked+s.Poisoned > 0 })
	if st := r.Stats(); st.Parked > 0 || st.Poisoned != 1 {
		t.Errorf("%+v", st)
	}
}
