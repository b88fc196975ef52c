package kafka

import (
	"errors"
	"slices"
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/millrace-go/millrace/bus"
)

// lastCode is the newest error that somebody has judged.
const lastCode = 136

// TestVerdicts: each error of Kafka has been judged; for most, Kafka's own classification holds.
func TestVerdicts(t *testing.T) {
	const anotherTry, unclear = true, true
	special := []struct {
		about   whose
		means   error
		passes  bool
		unclear bool
		errs    []*kerr.Error
	}{
		{theMessages, bus.ErrTooLarge, !anotherTry, !unclear, []*kerr.Error{kerr.MessageTooLarge, kerr.RecordListTooLarge}},
		{theMessages, bus.ErrInvalid, !anotherTry, !unclear, []*kerr.Error{kerr.InvalidRecord, kerr.InvalidTimestamp}},
		{theMessages, nil, anotherTry, !unclear, []*kerr.Error{kerr.CorruptMessage}},
		{theTopics, bus.ErrNotFound, !anotherTry, !unclear, []*kerr.Error{kerr.UnknownTopicOrPartition, kerr.UnknownTopicID}},
		{theTopics, nil, !anotherTry, !unclear, []*kerr.Error{
			kerr.TopicAuthorizationFailed, kerr.ClusterAuthorizationFailed, kerr.InvalidTopicException, kerr.PolicyViolation,
			kerr.UnsupportedCompressionType, kerr.UnsupportedForMessageFormat,
		}},
		{theBrokers, nil, anotherTry, unclear, []*kerr.Error{
			kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, kerr.NotLeaderForPartition, kerr.KafkaStorageError, kerr.NetworkException,
			kerr.UnknownServerError, kerr.OutOfOrderSequenceNumber, kerr.UnknownProducerID, kerr.InvalidProducerIDMapping,
			kerr.InvalidProducerEpoch, kerr.ProducerFenced,
		}},
		{theBrokers, nil, anotherTry, !unclear, []*kerr.Error{
			kerr.InvalidTxnState, kerr.ConcurrentTransactions, kerr.TransactionCoordinatorFenced, kerr.TransactionAbortable,
			kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.UnknownMemberID,
		}},
	}
	for code := int16(-1); code < 1000; code++ {
		said, _ := errors.AsType[*kerr.Error](kerr.ErrorForCode(code))
		switch {
		case said == nil: // 0
			continue
		case said.Code != code: // there is none
			if code <= lastCode {
				t.Errorf("error %d is gone", code)
			}
			continue
		case code > lastCode:
			t.Errorf("nobody has judged %v (%d): is it the message's, the topic's or the broker's, does it pass, and may the record be in the log?", said, code)
		}
		want := verdict{passes: said.Retriable}
		for _, of := range special {
			if slices.Contains(of.errs, said) {
				want = verdict{of.about, of.means, of.passes, of.unclear}
			}
		}
		e, _ := errors.AsType[*bus.Error](publishFailure("t", said, definite(said, traffic{}, traffic{})))
		if !errors.Is(e, said) {
			t.Errorf("%v was lost", said)
		}
		if want.means != nil && !errors.Is(e, want.means) {
			t.Errorf("%v is not %v", said, want.means)
		}
		if want.means == nil && (errors.Is(e, bus.ErrInvalid) || errors.Is(e, bus.ErrTooLarge) || errors.Is(e, bus.ErrNotFound) || errors.Is(e, bus.ErrClosed)) {
			t.Errorf("%v says too much: %v", said, e)
		}
		if bus.IsRetryable(e) != want.passes {
			t.Errorf("%v: retryable is %t", said, !want.passes)
		}
		if e.Definite == want.unclear {
			t.Errorf("%v: definite is %t", said, e.Definite)
		}
		if definite(said, traffic{}, traffic{lost: 1}) {
			t.Errorf("%v is definite although an answer was lost", said)
		}
		if refused := want.about != theBrokers && !want.passes && !errors.Is(want.means, bus.ErrNotFound); isRefused(said) != refused {
			t.Errorf("%v: refused is %t", said, !refused)
		}
		if wide := want.about == theTopics && want.means == nil; isTopicWide(said) != wide {
			t.Errorf("%v: of the whole topic is %t", said, !wide)
		}
	}
}
