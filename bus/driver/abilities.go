package driver

import "context"

// Optional abilities of a driver, found with [bus.As].
type (
	// Pinger checks that the broker answers.
	Pinger interface {
		Ping(ctx context.Context) error
	}
	// Lagger tells how many messages of a topic a group has not finished yet. What is parked does not count: it is not in
	// the topic any more.
	Lagger interface {
		Lag(ctx context.Context, topic, group string) (int64, error)
	}
)
