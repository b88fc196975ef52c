package kafka_test

import (
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestReplayWhileItsLaneMoves: a lane is handed over when the command that is being carried out in
// it is done. Its next owner does not do it again.
func TestReplayWhileItsLaneMoves(t *testing.T) {
	c := fakeCluster(t)
	b, other := open(t, fakeConfig(c)), open(t, fakeConfig(c))
	publish(t, b, "t", spread(8)...)
	s, o := parking(t, b, "t", "g")
	ps := parkAll(receive(t, s, 8))
	if err := s.Park(within(t), ps); err != nil {
		t.Fatal(err)
	}
	due := time.Now().Add(2 * time.Hour).Truncate(time.Second)
	for i := range ps {
		ps[i].Due = due
	}
	injector, _ := bus.As[driver.Injector](other)
	if err := injector.Inject(within(t), "t", "g", ps); err != nil {
		t.Fatal(err)
	}
	began, slow := make(chan struct{}), time.NewTimer(time.Hour)
	writes := 0
	c.ControlKey(int16(kmsg.Produce), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if writes++; writes == 1 {
			close(began)
		}
		if writes < 5 { // the first owner's writes for its four lanes
			c.SleepControl(func() {
				<-slow.C
				slow.Reset(0)
			})
		}
		return nil, nil, false
	})
	select {
	case <-began:
	case <-within(t).Done():
		t.Fatal("no command is carried out")
	}
	go func() { _, _ = s.Receive(t.Context(), make([]bus.Delivery, 1), 1) }()
	_, o2 := parking(t, other, "t", "g")
	slow.Reset(2 * time.Second) // longer than the members need to agree
	o2.until(t, "the second member has half", owns(2))
	o.until(t, "the first member has half", owns(2))
	o2.until(t, "the second member is told", func(*observer) bool { return len(o2.parked) > 0 })
	o2.mu.Lock()
	defer o2.mu.Unlock()
	for _, p := range o2.parked {
		if !p.Due.Equal(due) {
			t.Errorf("position %d is due at %v, before its replay", p.Token.Position, p.Due)
		}
	}
}

// TestTopicGetsAnID: a topic that has an id from the brokers' upgrade on is the same topic: its
// lanes stay.
func TestTopicGetsAnID(t *testing.T) {
	f := newFake(t)
	publish(t, f.bus, "t", numbers(0, 2)...)
	o := newObserver()
	s := subscribe(t, f.bus, "t", "g", bus.Earliest, o)
	ds := receive(t, s, 2)
	settle(t, s, ds[0])
	f.committed(t, "g", at(1))
	kafka.ForgetTopicID(s)
	looks := make(chan struct{}, 8)
	f.ControlKey(int16(kmsg.Metadata), func(r kmsg.Request) (kmsg.Response, error, bool) {
		f.KeepControl()
		if ts := r.(*kmsg.MetadataRequest).Topics; len(ts) == 1 && ts[0].Topic != nil && *ts[0].Topic == "t" {
			select {
			case looks <- struct{}{}:
			default:
			}
		}
		return nil, nil, false
	})
	for range 3 { // the watcher's; the third begins when the second has been dealt with
		select {
		case <-looks:
		case <-within(t).Done():
			t.Fatal("nobody looks")
		}
	}
	settle(t, s, ds[1])
	f.committed(t, "g", at(2))
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.lost) > 0 {
		t.Errorf("lost %v", o.lost)
	}
}
