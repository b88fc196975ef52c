package driver

import (
	"fmt"
	"strings"

	"github.com/millrace-go/millrace/bus"
)

const transient = "delivery:"

// TransientID returns an id for a message that its publisher gave none, where a broker has no positions that last. It names this
// delivery: when the message is delivered again, it has another. For drivers; where positions last, they make a better id.
func TransientID(topic string, t bus.Token) string {
	return fmt.Sprintf(transient+"%s/%d/%x-%d", topic, t.Lane, t.Epoch, t.Position)
}

// IsTransientID says whether an id was made by [TransientID]: nothing that remembers ids can tell by it that the message was there
// before.
func IsTransientID(id string) bool { return strings.HasPrefix(id, transient) }
