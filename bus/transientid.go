package bus

import "strings"

const transient = "transient:"

// TransientID is the id that a driver gives to a message which came without one, where its broker has no place for it that
// lasts: delivered again, the message has another id. place is what makes it unique.
func TransientID(place string) string { return transient + place }

// IsTransientID says whether an id was made by [TransientID]: a message cannot be known again by it.
func IsTransientID(id string) bool { return strings.HasPrefix(id, transient) }
