package amqplink

import (
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// tables are recycled: the client library has written a table when its publish returns.
var tables = sync.Pool{New: func() any { return make(amqp.Table, 16) }}

// NewTable returns an empty table for the headers of a [Parcel].
func NewTable() amqp.Table { return tables.Get().(amqp.Table) }

// Recycle takes a table back, or nil. Nothing may use it any more.
func Recycle(t amqp.Table) {
	if t != nil {
		clear(t)
		tables.Put(t)
	}
}
