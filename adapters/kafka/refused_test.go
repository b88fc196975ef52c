package kafka_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestRefusedOutputs: the broker's refusal of one topic, or of one message, is no obstacle to the
// rest of the transaction.
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

// TestInvalidRecordIsRefusedAlone: an invalid record fails no other message of its call, and none
// of other callers. The others keep their order. If the refusal comes while a call is being handed
// to the client, the first part of that call may fail, and another try helps.
func TestInvalidRecordIsRefusedAlone(t *testing.T) {
	c := realConfig(t)
	c.Linger = 20 * time.Millisecond // the callers share batches
	b, f := open(t, c), newForeigner(t, c)
	topic := name("t")
	compact := "compact" // it takes no records without a key
	if _, err := f.adm.CreateTopic(within(t), 1, 1, map[string]*string{"cleanup.policy": &compact}, topic); err != nil {
		t.Fatal(err)
	}
	const callers, each, rounds = 4, 20, 3
	var retryable atomic.Int32
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for round := range rounds {
				ms := make([]*bus.Message, each)
				for i := range ms {
					ms[i] = &bus.Message{Key: fmt.Sprint(caller), Payload: fmt.Append(nil, round*each+i)}
					if caller == 0 && i%7 == 3 {
						ms[i].Key = ""
					}
				}
				for i, err := range outcomes(t, within(t), b, topic, ms) {
					if bus.IsRetryable(err) && bus.IsDefinite(err) {
						retryable.Add(1)
					} else if refused := ms[i].Key == ""; refused != errors.Is(err, bus.ErrInvalid) || refused != (err != nil) || refused && !bus.IsDefinite(err) {
						t.Errorf("caller %d, message %d: %v", caller, i, err)
					}
				}
			}
		})
	}
	wg.Wait()
	const all = rounds * (callers*each - 3)
	if n := retryable.Load(); n > all/4 {
		t.Errorf("%d of %d messages failed for others' sake", n, all)
	}
	last := map[string]int{}
	for _, d := range receive(t, subscribe(t, b, topic, name("g"), bus.Earliest, newObserver()), all-int(retryable.Load())) {
		n, err := strconv.Atoi(string(d.Payload))
		if before, had := last[d.Key]; err != nil || had && n <= before {
			t.Errorf("of key %s, %d comes after %d", d.Key, n, before)
		}
		last[d.Key] = n
	}
}
