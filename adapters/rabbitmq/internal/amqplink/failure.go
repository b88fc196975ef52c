package amqplink

import (
	"errors"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Retryable reports whether a call that failed with err may succeed later. A mistake in the
// request, a missing permission or an existing object of another kind gets the same answer until
// somebody changes it. So does a certificate that nobody vouches for.
func Retryable(err error) bool {
	for _, final := range []error{bus.ErrClosed, bus.ErrUnsupported, bus.ErrInvalid, bus.ErrTooLarge, bus.ErrNotFound} {
		if errors.Is(err, final) {
			return false
		}
	}
	if driver.IsTLSRefusal(err) {
		return false
	}
	e, ok := errors.AsType[*amqp.Error](err)
	if !ok {
		return true
	}
	switch e.Code {
	case amqp.ContentTooLarge, amqp.InvalidPath, amqp.AccessRefused, amqp.PreconditionFailed, amqp.NotImplemented, amqp.SyntaxError,
		amqp.CommandInvalid:
		return false
	case amqp.NotAllowed:
		// No such vhost, or a limit of connections or channels, of a node perhaps: then another
		// node may take it.
		return strings.Contains(e.Reason, "limit")
	default: // a missing queue or exchange is declared again
		return true
	}
}

// isGuess reports whether the client took a server that hung up in the handshake for one that
// refuses the password or the virtual host. RabbitMQ refuses a password in this way, and a node in
// trouble does the same.
func isGuess(err error) bool {
	return errors.Is(err, amqp.ErrCredentials) || errors.Is(err, amqp.ErrVhost)
}

// HasCode reports whether err is the server's answer with the given reply code.
func HasCode(err error, code int) bool {
	e, ok := errors.AsType[*amqp.Error](err)
	return ok && e.Code == code
}
