package kafka

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// The quiet are looked after more often in tests.
func init() { watchInterval = 100 * time.Millisecond }

// PublishBuffer is the bytes of messages that may be under way.
const PublishBuffer = publishBuffer

// SetPolling has the watcher believe that somebody receives, or that nobody does.
func SetPolling(src bus.Source, on bool) {
	s := src.(*source)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polling, s.stopPoll = on, func() {}
	s.change.Broadcast()
}

// CutOff has a source receive the records that come after the log was cut off at an offset.
func CutOff(src bus.Source, partition int32, at int64) {
	s := src.(*source)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.enqueue(&kgo.FetchPartition{Partition: partition, Records: []*kgo.Record{{Partition: partition, Offset: at}}})
}

// ForgetTopicID has a source know its topic without an id, as before an upgrade of the brokers.
func ForgetTopicID(src bus.Source) {
	s := src.(*source)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topicID = [16]byte{}
}
