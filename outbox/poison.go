package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/logattr"
)

// PoisonGroup is the group in which a relay poisons the messages that the broker refuses. Several
// outboxes may share it: each has a name of its own, which is the handler of its entries.
const PoisonGroup = "outbox"

// maxRefusals is the number of refusals of a message before the relay believes them: a topic may be
// about to be created.
const maxRefusals = 5

// doubt is the time after which a final answer that does not concern the message counts as the
// message's fault.
const doubt = 10 * time.Minute

// final reports whether the same call cannot succeed later. A deadline is not final.
func final(err error) bool {
	return !bus.IsRetryable(err) && !errors.Is(err, bus.ErrClosed) && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled)
}

// ofMessage reports whether an error concerns the message or its topic, not the connection or the
// program.
func ofMessage(err error) bool {
	for _, fault := range []error{bus.ErrTooLarge, bus.ErrInvalid, bus.ErrNotFound, bus.ErrUnsupported} {
		if errors.Is(err, fault) {
			return true
		}
	}
	return bus.IsPermanent(err)
}

// putPoison puts a row into the poison store of the bus.
func (p *pump) putPoison(ctx context.Context, c *call, r row) error {
	store, err := driver.Of(p.bus).Poison(ctx, PoisonGroup)
	if err != nil {
		return err
	}
	host, _ := os.Hostname() // for information
	now := time.Now()
	return store.Put(ctx, driver.PoisonEntry{
		ID:      p.uniqueID(r), // the same if it is put again after a crash
		Message: r.msg, Topic: r.topic, Group: PoisonGroup, Handler: p.name, Position: r.seq,
		Failure: bus.Failure{Class: "refused", Text: c.cause.Error(), Attempts: c.block.tries, First: c.block.first, Last: now},
		Host:    host, Time: now,
	})
}

// finishPoison goes on after the poison store took a row or refused it. A refused row is parked in
// the table.
func (p *pump) finishPoison(c *call) {
	l, err := c.lanes[0], c.failed
	id := l.rows[0].msg.ID
	switch {
	case err == nil:
		p.nowPoisoned(c)
		p.done(l)
	case final(err) && ofMessage(err):
		if perr := p.park(l.rows[0], c.cause); perr != nil {
			p.failed(perr)
			p.wait(l, c.block)
			return
		}
		p.Relay.parked.Add(1)
		p.log.Tell(slog.LevelError, "outbox: the broker refused a message, and so did its poison store: it is parked in the table", c.topic, "topic", c.topic, "id", logattr.Text(id), "err", c.cause)
		delete(p.blocked, l.id)
		p.giveBack(l)
	default:
		p.failed(fmt.Errorf("outbox: put a refused message into the poison store: %w", err))
		p.wait(l, c.block)
	}
}

// nowPoisoned counts and tells.
func (p *pump) nowPoisoned(c *call) {
	p.poisoned.Add(1)
	p.log.Tell(slog.LevelError, "outbox: the broker refused a message, which is in the poison store now", c.topic, "topic", c.topic, "id", logattr.Text(c.lanes[0].rows[0].msg.ID), "err", c.cause)
}

// reason makes an error's text fit for every database.
func reason(cause error) string {
	const most = 4096 // bytes
	text := strings.ReplaceAll(strings.ToValidUTF8(cause.Error(), "\uFFFD"), "\x00", "\uFFFD")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// park keeps a row from being tried again, until [Outbox.Retry].
func (p *pump) park(r row, cause error) error {
	ctx, cancel := context.WithTimeout(context.Background(), giveUpTimeout)
	defer cancel()
	_, err := p.db.ExecContext(ctx, p.outbox.sql("UPDATE {outbox} SET parked = ? WHERE seq = ? AND lane = ? AND created = ?"), reason(cause), r.seq, r.lane, r.created)
	if err != nil {
		return fmt.Errorf("outbox: park a refused message: %w", err)
	}
	return nil
}
