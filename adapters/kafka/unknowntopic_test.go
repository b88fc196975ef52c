package kafka_test

import (
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
)

// TestTopicUnknownForAMoment: a broker that has not heard of a topic yet says, for a moment, that
// it is unknown. Messages that are published after that are not taken for repeats of earlier ones.
func TestTopicUnknownForAMoment(t *testing.T) {
	c := fakeCluster(t, kfake.SeedTopics(1, "t"))
	b := open(t, fakeConfig(c))
	for _, text := range []string{"a", "b", "c"} { // a batch each
		publish(t, b, "t", texts(text)...)
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "t", Err: kerr.UnknownTopicOrPartition})
	s := subscribe(t, b, "t", "g", bus.Earliest, newObserver())
	for _, text := range []string{"d", "e", "f", "g"} { // as many, and one
		publish(t, b, "t", texts(text)...)
	}
	if got := payloads(receive(t, s, 7)); !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f", "g"}) {
		t.Errorf("received %v", got)
	}
}
