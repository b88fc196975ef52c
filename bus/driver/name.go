package driver

import (
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/only"
)

// CheckName reports a mistake in the name of a topic or group. The error calls the name by the word
// in what, and wraps [bus.ErrInvalid]. Every broker allows 1 to 200 of the characters
// a-z A-Z 0-9 . _ -, but not "." or "..".
func CheckName(what, name string) error { return bus.Engine(only.Module{}).CheckName(what, name) }
