package parking

import (
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/bus/driver"
)

// Command changes the parked messages of a lane from outside. It travels with a message, and the
// lane's owner carries it out.
type Command struct {
	Kind     Kind
	Position int64 // of the parked message; nothing for New
}

// Kind names the change that a command makes. Its text is stored at brokers.
type Kind string

// The kinds of commands.
const (
	New      Kind = "new"      // park this message, behind all others
	Replace  Kind = "replace"  // this message takes the place of the same message, parked at the position
	Withdraw Kind = "withdraw" // the message at the position is parked no more
)

// CommandOf returns the command for an injected entry.
func CommandOf(p *driver.Parking) Command {
	switch {
	case p.Withdraw:
		return Command{Withdraw, p.Token.Position}
	case p.Token.Parked:
		return Command{Replace, p.Token.Position}
	default:
		return Command{Kind: New}
	}
}

// String is the command as one stored text: "new", "replace 55", "withdraw 55".
func (c Command) String() string {
	if c.Kind == New {
		return string(New)
	}
	return string(c.Kind) + " " + strconv.FormatInt(c.Position, 10)
}

// ParseCommand reads a text that String has written. It returns false for other texts: a later
// version's, perhaps.
func ParseCommand(text string) (Command, bool) {
	if text == string(New) {
		return Command{Kind: New}, true
	}
	kind, number, _ := strings.Cut(text, " ")
	c := Command{Kind: Kind(kind)}
	if c.Kind != Replace && c.Kind != Withdraw {
		return Command{}, false
	}
	var err error
	c.Position, err = strconv.ParseInt(number, 10, 64)
	return c, err == nil
}
