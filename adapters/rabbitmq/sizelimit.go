package rabbitmq

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"sync/atomic"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// sizeLimit is the largest body that the publisher sends. The server closes the channel over a body
// above its limit, and with it ends everything that others have under way. It does not tell the
// limit beforehand, but in the reason. From then on the limit is kept here.
type sizeLimit struct {
	own    int
	server atomic.Int64 // 0 while unknown
}

// check refuses a body that the server would not take.
func (l *sizeLimit) check(body int) error {
	most := l.own
	if server := l.server.Load(); server > 0 && server < int64(most) {
		most = int(server)
	}
	if body <= most {
		return nil
	}
	return fmt.Errorf("%w: the body has %d bytes: the server takes %d", bus.ErrTooLarge, body, most)
}

var largerThanServers = regexp.MustCompile(`message size \d+ is larger than (?:configured )?max size (\d+)`)

// learn looks for the server's limit in the error that ended a channel.
func (l *sizeLimit) learn(errs []error) {
	for _, err := range errs {
		e, ok := errors.AsType[*amqp.Error](err)
		if !ok || e.Code != amqp.PreconditionFailed {
			continue
		}
		if m := largerThanServers.FindStringSubmatch(e.Reason); m != nil {
			if most, err := strconv.ParseInt(m[1], 10, 64); err == nil && most > 0 {
				l.server.Store(most)
			}
			return
		}
	}
}
