package driver

import (
	"fmt"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

const transient = "delivery:"

// TransientID returns an id for a message without an id of its publisher, on a broker without
// lasting positions. The id names this delivery: when the message is delivered again, it has
// another id. Drivers call it. Where positions last, they make a better id.
func TransientID(topic string, t bus.Token) string {
	return fmt.Sprintf(transient+"%s/%d/%x-%d", topic, t.Lane, t.Epoch, t.Position)
}

// IsTransientID reports whether [TransientID] made an id. Such an id changes with each delivery, so
// it cannot identify a repeat.
func IsTransientID(id string) bool { return strings.HasPrefix(id, transient) }
