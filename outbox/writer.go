package outbox

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// writer is a transaction as a driver: it can only publish. So the bus in front of it encodes,
// completes and checks messages as for any broker.
type writer struct {
	outbox *Outbox
	tx     Execer
	wrote  bool
}

const (
	columns = "(lane, created, time, topic, id, msg_key, " + sqlmessage.Columns + ")"
	values  = "(?, {now}, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	// A statement has a power of two of rows, so that there are few to prepare: at most insertRows
	// rows, and about insertBytes bytes.
	insertRows  = 128
	insertBytes = 1 << 20
)

// Publish implements driver.Driver.
func (w *writer) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	for done := 0; done < len(msgs); {
		n := 1
		for size := msgs[done].Size(); 2*n <= min(insertRows, len(msgs)-done); n *= 2 {
			for _, m := range msgs[done+n : done+2*n] {
				size += m.Size()
			}
			if size > insertBytes {
				break
			}
		}
		if err := w.insert(ctx, topic, msgs[done:done+n]); err != nil {
			failed := make([]error, len(msgs))
			for i := done; i < len(msgs); i++ {
				failed[i] = &bus.Error{Op: "publish", Broker: "outbox", Topic: topic, Err: err, Definite: true, Retryable: true}
			}
			return &bus.PublishError{Errs: failed}
		}
		done += n
	}
	w.wrote = true
	w.outbox.wake() // the commit comes soon
	return nil
}

func (w *writer) insert(ctx context.Context, topic string, msgs []*bus.Message) error {
	args := make([]any, 0, 11*len(msgs))
	for _, m := range msgs {
		args = append(args, lane(topic, m), sqlmessage.Nanos(m.Time), topic, m.ID, []byte(m.Key))
		args = sqlmessage.AppendArgs(args, m)
	}
	text := "INSERT INTO {outbox} " + columns + " VALUES " + rows(len(msgs), values)
	if w.outbox.dialect == MySQL { // first the lock, then the number
		text = strings.Replace(text, "{now}", "{now} + COALESCE(("+lockSlot+"), 0)", 1)
		args = slices.Insert(args, 1, any(rand.N(fenceSlots)))
	}
	_, err := w.tx.ExecContext(ctx, w.outbox.sql(text), args...)
	return err
}

// lane is the hash of the unit of order: the topic and key, or the message alone if it has no key.
// It has 63 bits, because not all databases have unsigned integers.
func lane(topic string, m *bus.Message) int64 {
	h := uint64(14695981039346656037) // FNV-1a: it must be the same in every process and version
	add := func(s string) {
		for i := range len(s) {
			h = (h ^ uint64(s[i])) * 1099511628211
		}
	}
	add(topic)
	if m.Key != "" {
		add("\x00k")
		add(m.Key)
	} else {
		add("\x00i")
		add(m.ID)
	}
	h ^= h >> 32 // the low bits choose the bucket
	return int64(h >> 1)
}

// Subscribe implements driver.Driver.
func (w *writer) Subscribe(context.Context, bus.Subscription, bus.LaneObserver) (bus.Source, error) {
	return nil, fmt.Errorf("outbox: subscribe: %w: a transaction can only publish", bus.ErrUnsupported)
}

// Poison implements driver.Driver.
func (w *writer) Poison(context.Context, string) (driver.PoisonStore, error) {
	return nil, fmt.Errorf("outbox: poison: %w: a transaction can only publish", bus.ErrUnsupported)
}

// Capabilities implements driver.Driver.
func (w *writer) Capabilities() bus.Capabilities {
	return bus.Capabilities{Broker: "outbox", Durable: true}
}

// Close implements driver.Driver. The transaction is the caller's.
func (w *writer) Close(context.Context) error { return nil }
