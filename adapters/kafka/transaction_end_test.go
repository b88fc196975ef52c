package kafka_test

import (
	"context"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestFailedTransactionIsAborted at once: the readers of its outputs do not wait for the
// transaction's timeout.
func TestFailedTransactionIsAborted(t *testing.T) {
	c := fakeCluster(t)
	b := open(t, fakeConfig(c))
	onePartition(t, b, "in")
	onePartition(t, b, "out")
	publish(t, b, "in", texts("a")...)
	s, _ := transactional(t, b, "in", "g")
	ds := receive(t, s, 1)
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.InvalidCommitOffsetSize})
	if err := s.SettleWith(within(t), []driver.Settlement{{Token: ds[0].Token, Outputs: output("out", "A")}}); err == nil {
		t.Error("no error")
	}
	publish(t, b, "out", texts("end")...)
	outs := subscribe(t, b, "out", "g", bus.Earliest, newObserver())
	soon, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	buf := make([]bus.Delivery, 2)
	if n, err := outs.Receive(soon, buf, 1000); !slices.Equal(payloads(buf[:n]), []string{"end"}) {
		t.Errorf("published were %q: %v", payloads(buf[:n]), err)
	}
}

// TestEndUnknownAndOneLaneMovedOn: if one of a transaction's lanes was committed anew meanwhile,
// the other lanes still tell the transaction's outcome.
func TestEndUnknownAndOneLaneMovedOn(t *testing.T) {
	c := fakeCluster(t)
	n := &network{conns: map[net.Conn]struct{}{}}
	config := fakeConfig(c)
	well := open(t, config)
	config.Client = []kgo.Opt{kgo.Dialer(n.dial), kgo.RequestRetries(0)}
	b := open(t, config)
	onePartition(t, well, "out")
	publish(t, well, "in", byPartition(4)...)
	s, _ := transactional(t, b, "in", "g")
	ds := receive(t, s, 4)
	details, err := newForeigner(t, config).adm.ListTopics(within(t), "in")
	if err != nil {
		t.Fatal(err)
	}
	id := details["in"].ID
	var sent []kmsg.TxnOffsetCommitRequestTopicPartition
	c.ControlKey(int16(kmsg.TxnOffsetCommit), func(req kmsg.Request) (kmsg.Response, error, bool) {
		sent = req.(*kmsg.TxnOffsetCommitRequest).Topics[0].Partitions
		return nil, nil, false
	})
	c.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
		n.cut(false) // it is committed, and no answer gets through
		return nil, nil, false
	})
	c.ControlKey(int16(kmsg.OffsetFetch), func(req kmsg.Request) (kmsg.Response, error, bool) {
		resp := req.ResponseKind().(*kmsg.OffsetFetchResponse)
		topic := kmsg.NewOffsetFetchResponseGroupTopic()
		topic.Topic, topic.TopicID = "in", id
		for _, p := range sent {
			o := kmsg.NewOffsetFetchResponseGroupTopicPartition()
			o.Partition, o.Offset, o.Metadata = p.Partition, p.Offset, p.Metadata
			if p.Partition == ds[0].Lane { // its next owner has committed since
				o.Offset, o.Metadata = p.Offset+1, nil
			}
			topic.Partitions = append(topic.Partitions, o)
		}
		group := kmsg.NewOffsetFetchResponseGroup()
		group.Group, group.Topics = "g", []kmsg.OffsetFetchResponseGroupTopic{topic}
		resp.Groups = append(resp.Groups, group)
		return resp, nil, true
	})
	var ss []driver.Settlement
	for i, d := range ds {
		ss = append(ss, driver.Settlement{Token: d.Token, Outputs: output("out", string(rune('A'+i)))})
	}
	if err := s.SettleWith(within(t), ss); err != nil {
		t.Error(err)
	}
}
