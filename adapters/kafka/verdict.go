package kafka

import (
	"errors"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/millrace-go/millrace/bus"
)

// whose says which things a broker's error is about.
type whose uint8

const (
	theBrokers  whose = iota // a broker, the group, the connection or the producer: other messages would have failed, too
	theTopics                // all messages of the topic
	theMessages              // the message, or another one of its batch
)

// verdict is the meaning of a broker's error.
type verdict struct {
	about   whose
	means   error // the bus's own error; nil: it has none
	passes  bool  // another try may succeed
	unclear bool  // the record may be in the log
}

// verdicts has the verdicts of the errors that need one. Every other error is the broker's, passes
// if Kafka calls it retriable, and means that nothing was written.
var verdicts = map[*kerr.Error]verdict{
	kerr.MessageTooLarge:    {about: theMessages, means: bus.ErrTooLarge},
	kerr.RecordListTooLarge: {about: theMessages, means: bus.ErrTooLarge},
	kerr.InvalidRecord:      {about: theMessages, means: bus.ErrInvalid},
	kerr.InvalidTimestamp:   {about: theMessages, means: bus.ErrInvalid},
	kerr.CorruptMessage:     {about: theMessages, passes: true}, // damaged on its way

	kerr.UnknownTopicOrPartition:     {about: theTopics, means: bus.ErrNotFound},
	kerr.UnknownTopicID:              {about: theTopics, means: bus.ErrNotFound},
	kerr.TopicAuthorizationFailed:    {about: theTopics},
	kerr.ClusterAuthorizationFailed:  {about: theTopics}, // of a topic that may not be created, or written to with sequence numbers
	kerr.InvalidTopicException:       {about: theTopics},
	kerr.PolicyViolation:             {about: theTopics},
	kerr.UnsupportedCompressionType:  {about: theTopics},
	kerr.UnsupportedForMessageFormat: {about: theTopics},

	// The leader has written the record, and does not know of the replicas; or it ceased to be the
	// leader after that.
	kerr.RequestTimedOut:              {passes: true, unclear: true},
	kerr.NotEnoughReplicasAfterAppend: {passes: true, unclear: true},
	kerr.NotLeaderForPartition:        {passes: true, unclear: true},
	kerr.KafkaStorageError:            {passes: true, unclear: true},
	kerr.NetworkException:             {passes: true, unclear: true},
	kerr.UnknownServerError:           {passes: true, unclear: true},

	// The broker has lost track of its written records. The client begins anew with another id or
	// epoch.
	kerr.OutOfOrderSequenceNumber: {passes: true, unclear: true},
	kerr.UnknownProducerID:        {passes: true, unclear: true},
	kerr.InvalidProducerIDMapping: {passes: true, unclear: true},
	kerr.InvalidProducerEpoch:     {passes: true, unclear: true},
	kerr.ProducerFenced:           {passes: true, unclear: true},

	// They end with the transaction, or with the generation of the group.
	kerr.InvalidTxnState:              {passes: true},
	kerr.ConcurrentTransactions:       {passes: true},
	kerr.TransactionCoordinatorFenced: {passes: true},
	kerr.TransactionAbortable:         {passes: true},
	kerr.RebalanceInProgress:          {passes: true},
	kerr.IllegalGeneration:            {passes: true},
	kerr.UnknownMemberID:              {passes: true},
}

// judge returns the verdict on an error, if a broker has said it.
func judge(err error) (verdict, bool) {
	said, ok := errors.AsType[*kerr.Error](err)
	if !ok {
		return verdict{}, false
	}
	if v, listed := verdicts[said]; listed {
		return v, true
	}
	return verdict{passes: said.Retriable}, true
}

// isMissing says whether a topic does not exist, or not any more.
func isMissing(err error) bool {
	return errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID)
}

// isRefused says whether the broker does not take a record, or any of its topic, and will not with
// another try.
func isRefused(err error) bool {
	v, _ := judge(err)
	return v.about != theBrokers && !v.passes && !isMissing(err)
}

// isTopicWide says whether the broker refuses all records of a topic.
func isTopicWide(err error) bool {
	v, _ := judge(err)
	return isRefused(err) && v.about == theTopics
}
