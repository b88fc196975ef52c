package kafka_test

import (
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestParkAgain: a message that fails each time it comes back is parked again and again, and is
// never gone.
func TestParkAgain(t *testing.T) {
	for _, exactlyOnce := range []bool{false, true} {
		name := map[bool]string{false: "at least once", true: "exactly once"}[exactlyOnce]
		t.Run(name, func(t *testing.T) { eachBroker(t, func(t *testing.T, c kafka.Config) { parkAgain(t, c, exactlyOnce) }) })
	}
}

func parkAgain(t *testing.T, c kafka.Config, exactlyOnce bool) {
	b := open(t, c)
	topic, group := name("t"), name("g")
	publish(t, b, topic, texts("a")...)
	source := func() (driver.ParkingSource, *parkingObserver) {
		if !exactlyOnce {
			return parking(t, b, topic, group)
		}
		s, o := transactional(t, b, topic, group)
		return s.(driver.ParkingSource), o
	}
	s, _ := source()
	ps := parkAll(receive(t, s, 1))
	for try := 1; try <= 4; try++ {
		ps[0].Attempt, ps[0].Failure = try, &bus.Failure{Text: "failed", Attempts: try, First: time.Now()}
		if err := s.Park(within(t), ps); err != nil {
			t.Fatal(err)
		}
		ds := make([]bus.Delivery, 1)
		if n, err := s.Fetch(within(t), []bus.Token{ps[0].Token}, ds); n != 1 || err != nil {
			t.Fatalf("after it was parked %d times, %d came back: %v", try, n, err)
		}
		if ds[0].Attempt != try || string(ds[0].Payload) != "a" {
			t.Errorf("after it was parked %d times, %q came back with attempt %d", try, ds[0].Payload, ds[0].Attempt)
		}
		ps[0].Delivery = ds[0]
	}
	closeSource(t, s)
	s, o := source()
	if got := fetched(t, s, o.told(t, 1)); len(got) != 1 || got[0] != "a" {
		t.Errorf("the next owner fetched %v", got)
	}
}
