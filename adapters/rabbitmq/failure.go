package rabbitmq

import (
	"errors"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

const broker = "rabbitmq"

// fail makes the error of an operation that is not a publish.
func fail(op, topic string, err error) error {
	if e, ok := errors.AsType[*bus.Error](err); ok {
		return e
	}
	return &bus.Error{Op: op, Broker: broker, Topic: topic, Err: err, Definite: true, Retryable: amqplink.Retryable(err)}
}
