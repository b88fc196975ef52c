package driver

import "context"

// Optional abilities of a driver, found with [bus.As].
type (
	// Pinger checks that the broker answers.
	Pinger interface {
		Ping(ctx context.Context) error
	}
	// Lagger counts the messages of a topic that a group has not finished yet. Parked messages do
	// not count: they have left the topic. The error wraps ErrNotFound while the broker knows no
	// position of the group in the topic: on Kafka until the group's first commit.
	Lagger interface {
		Lag(ctx context.Context, topic, group string) (int64, error)
	}
)
