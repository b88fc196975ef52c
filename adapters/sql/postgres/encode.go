package postgres

import (
	"encoding/binary"
	"sync"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// encoder writes the parameters of an insert in the protocol's binary form: an array for each
// column. The library's own encoding of arrays takes several times as long, which shows at this
// place alone.
type encoder struct {
	params  [13][]byte
	buffers [13][]byte // the params' values, kept for the next time
	topics  []int64
}

var encoders = sync.Pool{New: func() any { return new(encoder) }}

// Elements are encoded with their length before them; the length of NULL is -1.

func int2b(b []byte, v int16) []byte { return binary.BigEndian.AppendUint16(length(b, 2), uint16(v)) }

func int4b(b []byte, v int32) []byte { return binary.BigEndian.AppendUint32(length(b, 4), uint32(v)) }

func int8b(b []byte, v int64) []byte { return binary.BigEndian.AppendUint64(length(b, 8), uint64(v)) }
func text(b []byte, s string) []byte { return append(length(b, len(s)), s...) }
func length(b []byte, n int) []byte  { return binary.BigEndian.AppendUint32(b, uint32(int32(n))) }

// array begins an array of n elements.
func array(b []byte, element uint32, n int) []byte {
	for _, v := range []uint32{1, 1, element, uint32(n), 1} { // dimensions, may have NULLs, type, length, first index
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return b
}

func (e *encoder) encode(class int32, batch []sqllog.Record) [][]byte {
	b := &e.buffers
	for i, element := range [...]uint32{0, oidInt4, oidInt4, oidInt2, oidInt8, oidText, oidBytea, oidText, oidText, oidText, oidText, oidText, oidBytea} {
		b[i] = b[i][:0]
		if i > 1 {
			b[i] = array(b[i], element, len(batch))
		}
	}
	b[0] = binary.BigEndian.AppendUint32(b[0], uint32(class))
	e.topics = e.topics[:0]
	for i := range batch {
		r, m := &batch[i], batch[i].Message
		if i == 0 || r.Topic != batch[i-1].Topic {
			e.topics = append(e.topics, r.Topic)
		}
		b[2] = int4b(b[2], int32(r.Topic))
		b[3] = int2b(b[3], int16(r.Shard))
		b[4] = int8b(b[4], sqlmessage.Nanos(m.Time))
		b[5] = text(b[5], m.ID)
		b[6] = text(b[6], m.Key)
		b[7] = text(b[7], m.Type)
		b[8] = text(b[8], m.Source)
		b[9] = text(b[9], m.Subject)
		b[10] = text(b[10], m.ContentType)
		if headers, ok := sqlmessage.EncodeHeaders(m); ok {
			b[11] = text(b[11], headers)
		} else {
			b[11] = length(b[11], -1)
		}
		if m.Payload != nil {
			b[12] = append(length(b[12], len(m.Payload)), m.Payload...)
		} else {
			b[12] = length(b[12], -1)
		}
	}
	b[1] = array(b[1], oidInt4, len(e.topics))
	for _, t := range e.topics {
		b[1] = int4b(b[1], int32(t))
	}
	e.params = *b
	return e.params[:]
}
