package kafka

import (
	"context"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"
)

// rehearseEach finds which outputs are refused, in transactions that are always aborted, and notes
// it at their settlements. When one record is refused, the client reports the error of all records
// of the transaction.
func (s *source) rehearseEach(ctx context.Context, outputs []*writes, errs []error) (found bool, err error) {
	for _, w := range outputs {
		refused, err := s.rehearse(ctx, w, errs)
		if err != nil {
			return false, err
		}
		found = found || refused
	}
	return found, nil
}

// rehearse finds the settlements with refused outputs for one topic. It halves batches that are
// refused as a whole.
func (s *source) rehearse(ctx context.Context, w *writes, errs []error) (found bool, err error) {
	err = s.tryOut(ctx, w)
	first, last := w.of[0], w.of[len(w.of)-1]
	switch {
	case err == nil:
		return false, nil
	case !isRefused(err):
		return false, err
	case first == last || isTopicWide(err):
		for _, i := range w.of {
			errs[i] = err
		}
		return true, nil
	}
	middle := len(w.of) / 2
	for middle < len(w.of) && w.of[middle] == w.of[middle-1] { // the outputs of a settlement stay together
		middle++
	}
	if middle == len(w.of) {
		middle = slices.Index(w.of, last)
	}
	return s.rehearseEach(ctx, []*writes{w.part(0, middle), w.part(middle, len(w.of))}, errs)
}

// part is some of the writes.
func (w *writes) part(from, to int) *writes {
	records := slices.Clone(w.records[from:to])
	return &writes{topic: w.topic, records: records, size: sizeOf(records), of: w.of[from:to]}
}

// tryOut writes records in a transaction, and aborts it.
func (s *source) tryOut(ctx context.Context, w *writes) error {
	select {
	case <-s.commitLock:
		defer func() { s.commitLock <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	client, err := s.writer.begin(s)
	if err != nil {
		return fail("settle", s.sub.Topic, err)
	}
	err = s.produceAll(ctx, client, []*writes{w.part(0, len(w.records))})
	if err != nil {
		s.writer.abort(s)
		return err
	}
	ending, end := context.WithTimeout(context.WithoutCancel(ctx), abortPatience)
	defer end()
	if err := client.EndTransaction(ending, kgo.TryAbort); err != nil {
		s.writer.abort(s)
	}
	return nil
}
