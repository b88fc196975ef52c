package kafka

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// fail makes the error of an operation that publishes nothing.
func fail(op, topic string, err error) error {
	return &bus.Error{Op: op, Broker: "kafka", Topic: topic, Err: translate(err), Retryable: retryable(err)}
}

// publishFailure makes the error of one message, from what the client says of its record.
func publishFailure(topic string, err error) error {
	return &bus.Error{Op: "publish", Broker: "kafka", Topic: topic, Err: translate(err), Definite: definite(err), Retryable: retryable(err)}
}

// translate adds the bus's own errors to the native ones.
func translate(err error) error {
	var own error
	switch {
	case errors.Is(err, kerr.MessageTooLarge), errors.Is(err, kerr.RecordListTooLarge):
		own = bus.ErrTooLarge
	case errors.Is(err, kgo.ErrClientClosed):
		own = bus.ErrClosed
	case isMissing(err):
		own = bus.ErrNotFound
	}
	if own == nil || errors.Is(err, own) {
		return err
	}
	return fmt.Errorf("%w: %w", own, err)
}

// isMissing says whether a topic does not exist, or not any more.
func isMissing(err error) bool {
	return errors.Is(err, kerr.UnknownTopicOrPartition) || errors.Is(err, kerr.UnknownTopicID)
}

// definite says whether err means that the record is not in the log. The client is idempotent and does not cancel what
// is in flight: it gives a record up only before it was sent, or after the broker has refused it. What is left
// open are the broker's answers that say nothing about the log.
func definite(err error) bool {
	switch {
	case errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries), errors.Is(err, kgo.ErrAborting),
		errors.Is(err, kgo.ErrMaxBuffered), errors.Is(err, bus.ErrNotFound), errors.Is(err, bus.ErrTooLarge), errors.Is(err, errNotSent):
		return true
	case errors.Is(err, kgo.ErrClientClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	}
	if ke, ok := errors.AsType[*kerr.Error](err); ok {
		switch ke {
		case kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, kerr.UnknownServerError:
			return false
		}
		return true
	}
	return false
}

// errNotSent marks failures from before a record was handed to the client.
var errNotSent = errors.New("nothing was sent")

// retryable says whether the same call may succeed later. Network failures may pass; of the broker's answers, those
// that Kafka calls retriable, and a few that end with the session that they concern.
func retryable(err error) bool {
	if errors.Is(err, kgo.ErrClientClosed) || errors.Is(err, bus.ErrClosed) || errors.Is(err, bus.ErrInvalid) || errors.Is(err, bus.ErrUnsupported) || errors.Is(err, bus.ErrNotFound) {
		return false
	}
	if errors.Is(err, kgo.ErrRecordTimeout) || errors.Is(err, kgo.ErrMaxBuffered) {
		return true
	}
	if ke, ok := errors.AsType[*kerr.Error](err); ok {
		switch ke {
		case kerr.RebalanceInProgress, kerr.IllegalGeneration, kerr.UnknownMemberID, kerr.UnknownServerError:
			return true
		}
		return ke.Retriable && !isMissing(ke)
	}
	return !isMisconnected(err)
}

// isMisconnected says whether a connection is of the wrong kind: TLS or SASL on one side only, or a certificate that
// is not trusted.
func isMisconnected(err error) bool {
	if _, ok := errors.AsType[*kgo.ErrFirstReadEOF](err); ok {
		return true
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}
