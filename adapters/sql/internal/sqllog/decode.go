package sqllog

import (
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// Decoder makes messages of a row's columns. The zero value is ready. Not safe for concurrent use.
type Decoder struct{ slab []bus.Message }

// slabSize is how many messages are allocated at once. A message that is kept keeps its whole slab
// alive.
const slabSize = 64

// New returns an empty message.
func (d *Decoder) New() *bus.Message {
	if len(d.slab) == 0 {
		d.slab = make([]bus.Message, slabSize)
	}
	m := &d.slab[0]
	d.slab = d.slab[1:]
	return m
}

// Columns are a row's columns as bytes, which the message copies: the texts into one allocation.
type Columns struct {
	Nanos int64
	// ID, Key, Type, Source, Subject, ContentType and Headers, in this order.
	Texts   [7][]byte
	Payload []byte // nil: NULL
}

// Message makes a message.
func (d *Decoder) Message(c *Columns) *bus.Message {
	n := 0
	for _, t := range c.Texts {
		n += len(t)
	}
	var b strings.Builder
	b.Grow(n)
	for _, t := range c.Texts {
		b.Write(t)
	}
	rest := b.String()
	next := func(i int) (s string) {
		n := len(c.Texts[i])
		s, rest = rest[:n], rest[n:]
		return s
	}
	m := d.New()
	m.Time = time.Unix(0, c.Nanos).UTC()
	m.ID, m.Key, m.Type, m.Source, m.Subject, m.ContentType = next(0), next(1), next(2), next(3), next(4), next(5)
	sqlmessage.DecodeHeaders(m, next(6))
	if c.Payload != nil {
		m.Payload = append(make([]byte, 0, len(c.Payload)), c.Payload...)
	}
	return m
}
