package kafka_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestLogWasCutOff: finished offsets of a log that is gone say nothing of the messages that came to
// these offsets later.
func TestLogWasCutOff(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  int64
		err  *kerr.Error
		want []string
	}{
		{"not", 10, nil, []string{"0", "1", "2"}},
		{"within the window", 5, nil, []string{"0", "1", "2", "5", "6", "7", "8", "9"}},
		{"before the position", -1, nil, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}},
		{"nobody says", 0, kerr.TopicAuthorizationFailed, []string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			publish(t, f.bus, "t", numbers(0, 10)...)
			s := subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
			settle(t, s, receive(t, s, 10)[3:]...)
			closeSource(t, s)
			f.ControlKey(int16(kmsg.OffsetForLeaderEpoch), func(req kmsg.Request) (kmsg.Response, error, bool) {
				f.KeepControl()
				resp := req.ResponseKind().(*kmsg.OffsetForLeaderEpochResponse)
				topic := kmsg.NewOffsetForLeaderEpochResponseTopic()
				topic.Topic = "t"
				p := kmsg.NewOffsetForLeaderEpochResponseTopicPartition()
				p.LeaderEpoch, p.EndOffset = req.(*kmsg.OffsetForLeaderEpochRequest).Topics[0].Partitions[0].LeaderEpoch, tc.end
				if tc.err != nil {
					p.ErrorCode = tc.err.Code
					f.DropControl() // the client's own question is answered
				}
				topic.Partitions = append(topic.Partitions, p)
				resp.Topics = append(resp.Topics, topic)
				return resp, nil, true
			})
			s = subscribe(t, f.bus, "t", "g", bus.Earliest, newObserver())
			ds, _ := insistently(t, s, len(tc.want))
			if got := payloads(ds); !slices.Equal(got, tc.want) {
				t.Errorf("got %q", got)
			}
			settle(t, s, ds...)
			f.committed(t, "g", at(10))
		})
	}
}

// TestCutOffWithMessagesInFlight: in the part of the log that is left, messages that were in flight
// come again, and finished messages do not.
func TestCutOffWithMessagesInFlight(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		onePartition(t, b, topic)
		publish(t, b, topic, numbers(0, 10)...)
		o := &parkingObserver{observer: newObserver()}
		s := subscribe(t, b, topic, group, bus.Earliest, o)
		old := receive(t, s, 10)
		settle(t, s, old[0], old[2], old[7])
		park := parkAll(old[3:4])
		if err := s.(driver.ParkingSource).Park(within(t), park); err != nil {
			t.Fatal(err)
		}
		kafka.CutOff(s, 0, 5)
		if _, err := s.Receive(within(t), make([]bus.Delivery, 1), 1000); err == nil {
			t.Error("nothing was reported")
		}
		again := receive(t, s, 7)
		if got := payloads(again); !slices.Equal(got, []string{"1", "4", "5", "6", "7", "8", "9"}) {
			t.Errorf("got %q", got)
		}
		if err := s.Settle(within(t), []bus.Token{old[1].Token}); !errors.Is(err, bus.ErrStale) {
			t.Errorf("a token of before: %v", err)
		}
		if got := fetched(t, s.(driver.ParkingSource), o.told(t, 1)); !slices.Equal(got, []string{"3"}) {
			t.Errorf("parked are %q", got)
		}
		settle(t, s, again...)
		closeSource(t, s)
		publish(t, b, topic, numbers(10, 1)...)
		s = subscribe(t, b, topic, group, bus.Earliest, newObserver())
		if got := payloads(receive(t, s, 1)); got[0] != "10" {
			t.Errorf("then %q", got)
		}
	})
}
