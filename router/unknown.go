package router

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/logattr"
	"github.com/millrace-go/millrace/internal/reserved"
)

// Messages of a type that no handler of the topic and group takes. They go to the poison queue as
// unknownType, unless Skip or SkipUnknown says that the group does not want them.

// unknownType is the class of failure of a message that no handler takes.
const unknownType = "unknown type"

// maxSkippedTypes bounds the types that are counted, and told of, one by one: foreign publishers
// choose their names.
const maxSkippedTypes = 100

// skips says whether a type is settled unhandled that no handler takes.
func (t *routeTable) skips(typ string) bool {
	return t.skip[typ] || typ == reserved.TypeStreamClosed || t.skipUnknown && typ != ""
}

// skipping counts the messages that were settled unhandled. The consumer's lock guards it.
type skipping struct {
	n      uint64            // messages skipped
	byType map[string]uint64 // the same by type, for the first types
	more   bool              // there were other types
}

// count counts a message. It says whether the message is the first of its type, or of all types
// that are not counted by themselves.
func (s *skipping) count(typ string) (first bool) {
	s.n++
	if s.byType == nil {
		s.byType = map[string]uint64{}
	}
	if s.byType[typ] == 0 && len(s.byType) == maxSkippedTypes {
		first, s.more = !s.more, true
		return first
	}
	s.byType[typ]++
	return s.byType[typ] == 1
}

// refuseUnknown settles a message that no handler takes, if its type is to be skipped, or sends it
// to the poison queue. It says whether it has settled the message. Called with the lock held.
func (c *consumer) refuseUnknown(t *task) (settled bool) {
	d := &t.h.Delivery
	kept := d.Handler != "" || d.Failure != nil // a handler had it once, or the poison queue: it is not lost now
	if kept || !c.table.skips(d.Type) {
		t.refuse(unknownType, errUnknownType(d.Type, c.table))
		return false
	}
	c.tellOfType(d.Type)
	if len(c.core.hooks.skipped) > 0 {
		told := *d
		t.onSettled = func(context.Context, error) error { c.tellSkipped(told); return nil }
	}
	if line := c.lot.lines[d.Key]; t.fetched && line != nil {
		c.await(line.messages[0]) // nothing of the key is in flight
	}
	c.settle(t)
	return true
}

// tellOfType counts a skipped message, and logs the first one of each type.
func (c *consumer) tellOfType(typ string) {
	switch s := &c.skipping; {
	case !s.count(typ) || typ == reserved.TypeStreamClosed:
	case c.table.skip[typ]:
		c.log.Info("messages of a type are skipped, because router.Skip names it", "type", logattr.Text(typ))
	case s.more:
		c.log.Warn("messages of further types that no handler takes are skipped; the log does not name more types", "types", maxSkippedTypes)
	default:
		c.log.Warn("messages of a type that no handler takes are skipped, because of router.SkipUnknown; if that is right, name the type in router.Skip", "type", logattr.Text(typ))
	}
}

// tellSkipped tells the hooks of a skipped message.
func (c *consumer) tellSkipped(d bus.Delivery) {
	for _, hook := range c.core.hooks.skipped {
		c.guarded("Skipped", func() { hook.Skipped(c.ctx, d) })
	}
}

// errUnknownType says why no handler takes a type, and what to do.
func errUnknownType(typ string, table *routeTable) error {
	const most = 128 // bytes: the log has this text
	typ = cut(typ, most)
	known := strings.Join(slices.Sorted(maps.Keys(table.byType)), ", ")
	switch {
	case typ == "":
		return fmt.Errorf("the message has no type, and more than one handler could take it (there are handlers for %s): have its publisher set a type, or take all types with one handler", known)
	case known == "":
		return fmt.Errorf("no handler takes messages of type %q", typ)
	default:
		return fmt.Errorf("no handler takes messages of type %q; there are handlers for %s", typ, known)
	}
}
