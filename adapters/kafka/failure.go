package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// fail makes the error of an operation that publishes nothing.
func fail(op, topic string, err error) error {
	return &bus.Error{Op: op, Broker: "kafka", Topic: topic, Err: translate(err), Retryable: retryable(err)}
}

// publishFailure makes the error of one message from the client's error for its record.
func publishFailure(topic string, err error, isDefinite bool) error {
	return &bus.Error{Op: "publish", Broker: "kafka", Topic: topic, Err: translate(err), Definite: isDefinite, Retryable: retryable(err)}
}

// publishError is the error of a publish with these outcomes; nil if all messages are published.
func publishError(errs []error) error {
	if firstError(errs) == nil {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

// translate adds the bus's own errors to the native ones.
func translate(err error) error {
	v, _ := judge(err)
	own := v.means
	if errors.Is(err, kgo.ErrClientClosed) {
		own = bus.ErrClosed
	}
	if own == nil || errors.Is(err, own) {
		return err
	}
	return fmt.Errorf("%w: %w", own, err)
}

// definite says whether err means that the record is not in the log; before and now are the traffic
// when it was handed to the client, and since. The client may have written a record that it gives
// up itself, if it has written anything. An answer of the broker speaks of the last try: if the
// answer to an earlier one was lost with its connection, the record may be in the log.
func definite(err error, before, now traffic) bool {
	switch {
	case errors.Is(err, bus.ErrNotFound), errors.Is(err, kgo.ErrMaxBuffered), errors.Is(err, errNotSent):
		return true
	case errors.Is(err, kgo.ErrRecordTimeout), errors.Is(err, kgo.ErrRecordRetries), errors.Is(err, kgo.ErrAborting):
		return now.written == before.written
	case errors.Is(err, kgo.ErrClientClosed), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	}
	v, said := judge(err)
	return said && !v.unclear && now.lost == before.lost
}

// wire counts the publishing traffic to the brokers. It is a hook of the native clients.
type wire struct{ written, lost atomic.Int64 }

// traffic is how many produce requests have been written, and how many answers were lost.
type traffic struct{ written, lost int64 }

func (w *wire) traffic() traffic { return traffic{w.written.Load(), w.lost.Load()} }

// OnBrokerWrite implements kgo.HookBrokerWrite.
func (w *wire) OnBrokerWrite(_ kgo.BrokerMetadata, key int16, n int, _, _ time.Duration, _ error) {
	if key == int16(kmsg.Produce) && n > 0 {
		w.written.Add(1)
	}
}

// OnBrokerE2E implements kgo.HookBrokerE2E.
func (w *wire) OnBrokerE2E(_ kgo.BrokerMetadata, key int16, e kgo.BrokerE2E) {
	if key == int16(kmsg.Produce) && e.Err() != nil {
		w.lost.Add(1)
	}
}

// errNotSent marks failures from before a record was handed to the client.
var errNotSent = errors.New("nothing was sent")

// retryable says whether the same call may succeed later. Network failures may pass; verdicts says
// which of the broker's answers do.
func retryable(err error) bool {
	if errors.Is(err, kgo.ErrClientClosed) || errors.Is(err, bus.ErrClosed) || errors.Is(err, bus.ErrInvalid) || errors.Is(err, bus.ErrUnsupported) || errors.Is(err, bus.ErrNotFound) {
		return false
	}
	if errors.Is(err, kgo.ErrRecordTimeout) || errors.Is(err, kgo.ErrMaxBuffered) {
		return true
	}
	if v, said := judge(err); said {
		return v.passes
	}
	return !driver.IsTLSRefusal(err)
}
