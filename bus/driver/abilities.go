package driver

import (
	"context"

	"github.com/millrace-go/millrace/bus"
)

// Optional abilities of a driver, found with [bus.As].
type (
	// Pinger checks that the broker answers.
	Pinger interface {
		Ping(ctx context.Context) error
	}
	// Lagger tells how far a group is behind on a topic. It takes the same time however far that is:
	// it looks at each lane, not at each message. The error wraps [bus.ErrNotFound] while the
	// broker knows no position of the group in the topic: on Kafka until the group's first commit.
	Lagger interface {
		Lag(ctx context.Context, topic, group string) (bus.Lag, error)
	}
)
