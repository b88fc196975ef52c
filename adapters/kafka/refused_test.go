package kafka_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestRefusedOutputs: what the broker refuses of one topic, or of one message, is no obstacle to the rest of the transaction.
func TestRefusedOutputs(t *testing.T) {
	t.Run("topic", func(t *testing.T) {
		c := fakeCluster(t)
		b := open(t, fakeConfig(c))
		onePartition(t, b, "in")
		onePartition(t, b, "good")
		onePartition(t, b, "forbidden")
		c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.AddPartitionsToTxn, kmsg.Produce}, Topic: "forbidden", Err: kerr.TopicAuthorizationFailed, Count: -1})
		publish(t, b, "in", texts("a", "b", "c", "d")...)
		s, _ := transactional(t, b, "in", "g")
		ds := receive(t, s, 4)
		var ss []driver.Settlement
		for i, d := range ds {
			ss = append(ss, driver.Settlement{Token: d.Token, Outputs: output([]string{"good", "forbidden"}[i%2], string(d.Payload))})
		}
		errs := bus.Outcomes(s.SettleWith(within(t), ss), 4)
		if errs[0] != nil || errs[2] != nil || !errors.Is(errs[1], kerr.TopicAuthorizationFailed) || !errors.Is(errs[3], kerr.TopicAuthorizationFailed) {
			t.Errorf("got %v", errs)
		}
		publish(t, b, "good", texts("end")...)
		if got := payloads(receive(t, subscribe(t, b, "good", "g", bus.Earliest, newObserver()), 3)); !slices.Equal(got, []string{"a", "c", "end"}) {
			t.Errorf("published were %q", got)
		}
	})
	t.Run("record", func(t *testing.T) {
		c := realConfig(t)
		b, f := open(t, c), newForeigner(t, c)
		in, out := name("in"), name("out")
		onePartition(t, b, in)
		compact := "compact" // it takes no records without a key
		if _, err := f.adm.CreateTopic(within(t), 1, 1, map[string]*string{"cleanup.policy": &compact}, out); err != nil {
			t.Fatal(err)
		}
		publish(t, b, in, numbers(0, 20)...)
		s, _ := transactional(t, b, in, "g")
		var ss []driver.Settlement
		var want []string
		for i, d := range receive(t, s, 20) {
			o := append(output(out, fmt.Sprint(i, " one")), output(out, fmt.Sprint(i, " two"))...)
			o[0].Message.Key, o[1].Message.Key = "k", "k"
			if i%7 == 3 {
				o[1].Message.Key = ""
			} else {
				want = append(want, string(o[0].Message.Payload), string(o[1].Message.Payload))
			}
			ss = append(ss, driver.Settlement{Token: d.Token, Outputs: o})
		}
		for i, err := range bus.Outcomes(s.SettleWith(within(t), ss), 20) {
			if refused := i%7 == 3; refused != errors.Is(err, kerr.InvalidRecord) {
				t.Errorf("%d: %v", i, err)
			}
		}
		got := payloads(receive(t, subscribe(t, b, out, name("g"), bus.Earliest, newObserver()), len(want)))
		if !slices.Equal(got, want) {
			t.Errorf("published were %q", got)
		}
	})
}
