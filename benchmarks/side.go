package main

import (
	"context"
	"time"
)

// side is one library at one place.
type side interface {
	publish(ctx context.Context, l load) error
	// consume starts a group that tells l of each message after work, until ctx ends.
	consume(ctx context.Context, work time.Duration, l *ledger) error
	close() error
}

// starter is a side that has to consume before it publishes, or it would lose the first messages.
type starter interface{ running() <-chan struct{} }

type opener func(ctx context.Context, p *place) (side, error)

// library is one of the compared libraries: its name, and how it is opened on the brokers that it
// knows.
type library struct {
	name string
	on   map[string]opener
}

// The first three are the columns of the table, the others are shown beside them.
var libraries = []library{
	{"millrace", millrace},
	{"watermill", watermills},
	{"raw", raws},
	{"go-cloud", gocloud},
	{"river", river},
}

// raws are the clients themselves, used as well as one can.
var raws = map[string]opener{
	"memory":   rawMemory,
	"kafka":    rawKafka,
	"rabbitmq": rawRabbitMQ,
	"postgres": rawPostgres,
	"mysql":    rawMySQL,
	"sqlite":   rawSQLite,
	"outbox":   openRawOutbox,
}
