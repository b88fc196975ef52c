package amqplink

import (
	"bufio"
	"encoding/binary"
	"io"
)

// frames reads a connection frame by frame, below the client library. The library ends the
// connection over a header table beyond its limits: values that nest too deep, or too many of them.
// Anybody may publish such a table, and the broker would deliver it again after each reconnect.
// frames replaces the table with one that holds the bytes of the original. So the message arrives,
// undecodable, like any other.
type frames struct {
	r    *bufio.Reader
	left int    // of the present frame, to be passed on as it is
	out  []byte // of a frame that was changed, to be passed on first
}

const (
	// maxDepth and maxElements are the limits of amqp091-go 1.16. They are not exported.
	maxDepth    = 32
	maxElements = 8192

	frameHead   = 1 + 2 + 4 // type, channel, size of the payload
	frameEnd    = 1
	frameHeader = 2         // the type of frames with a message's properties
	flagsAt     = 2 + 2 + 8 // class, weight, size of the body: the flags of the properties follow

	hasContentType     = 0x8000
	hasContentEncoding = 0x4000
	hasHeaders         = 0x2000

	// minFrameMax is the least that two sides agree on as the size of a frame.
	minFrameMax = 4096
)

// UnreadableHeader holds the bytes of a header table that cannot be read.
const UnreadableHeader = "millrace-unreadable"

func newFrames(r io.Reader) *frames { return &frames{r: bufio.NewReaderSize(r, FrameSize)} }

// Read passes on as many frames as are there.
func (f *frames) Read(b []byte) (n int, err error) {
	for n < len(b) {
		switch {
		case len(f.out) > 0:
			k := copy(b[n:], f.out)
			n, f.out = n+k, f.out[k:]
		case n > 0 && f.r.Buffered() == 0:
			return n, nil
		case f.left > 0:
			k, err := f.r.Read(b[n:min(len(b), n+f.left)])
			n, f.left = n+k, f.left-k
			if err != nil {
				return n, err
			}
		case n > 0 && !f.buffered():
			return n, nil
		default:
			if err := f.next(); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

// buffered says whether next need not wait.
func (f *frames) buffered() bool {
	if f.r.Buffered() < frameHead {
		return false
	}
	head, _ := f.r.Peek(frameHead)
	return head[0] != frameHeader || f.r.Buffered() >= frameLength(head)
}

func frameLength(head []byte) int {
	return frameHead + int(binary.BigEndian.Uint32(head[3:])) + frameEnd
}

// next looks at the frame that comes.
func (f *frames) next() error {
	head, err := f.r.Peek(frameHead)
	if err != nil {
		return err // the rest is no frame
	}
	f.left = frameLength(head)
	if head[0] != frameHeader || f.left > f.r.Size() {
		return nil
	}
	frame, err := f.r.Peek(f.left)
	if err != nil {
		return err
	}
	table, ok := tableOf(frame[:len(frame)-frameEnd])
	if !ok || readTable(frame[table.from:table.to], 0) {
		return nil
	}
	f.out = replaceTable(frame, table)
	_, err = f.r.Discard(f.left)
	f.left = 0
	return err
}

// span is a part of a frame.
type span struct{ from, to int }

// tableOf finds the contents of the header table in a header frame. ok is false if there is none.
func tableOf(frame []byte) (table span, ok bool) {
	at := frameHead + flagsAt + 2
	if len(frame) < at {
		return span{}, false
	}
	flags := binary.BigEndian.Uint16(frame[at-2:])
	for _, before := range [...]uint16{hasContentType, hasContentEncoding} {
		if flags&before != 0 && at < len(frame) {
			at += 1 + int(frame[at])
		}
	}
	if flags&hasHeaders == 0 || at > len(frame) {
		return span{}, false
	}
	value, _, ok := long(frame[at:])
	return span{at + 4, at + 4 + len(value)}, ok
}

// long splits off a part that begins with its length in four bytes.
func long(b []byte) (value, rest []byte, ok bool) {
	if len(b) < 4 {
		return nil, nil, false
	}
	n := int64(binary.BigEndian.Uint32(b))
	if b = b[4:]; n > int64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

// readTable says whether the client library takes a table of these contents at this depth.
func readTable(b []byte, depth int) bool {
	for n := 0; len(b) > 0; n++ {
		if n == maxElements || len(b) < 1+int(b[0]) {
			return false
		}
		var ok bool
		if b, ok = readValue(b[1+int(b[0]):], depth); !ok {
			return false
		}
	}
	return depth <= maxDepth
}

func readArray(b []byte, depth int) bool {
	for n := 0; len(b) > 0; n++ {
		var ok bool
		if n == maxElements {
			return false
		} else if b, ok = readValue(b, depth); !ok {
			return false
		}
	}
	return depth <= maxDepth
}

// readValue returns the bytes behind the value that b begins with. ok says whether the client
// library takes the value.
func readValue(b []byte, depth int) (rest []byte, ok bool) {
	if len(b) == 0 || depth > maxDepth {
		return nil, false
	}
	kind, size := b[0], 0
	switch b = b[1:]; kind {
	case 'V':
	case 't', 'b', 'B':
		size = 1
	case 's', 'u':
		size = 2
	case 'I', 'i', 'f':
		size = 4
	case 'D':
		size = 5
	case 'l', 'd', 'T':
		size = 8
	case 'S', 'x', 'A', 'F':
		value, rest, ok := long(b)
		switch {
		case !ok:
			return nil, false
		case kind == 'A':
			return rest, readArray(value, depth+1)
		case kind == 'F':
			return rest, readTable(value, depth+1)
		}
		return rest, true
	default:
		return nil, false
	}
	if len(b) < size {
		return nil, false
	}
	return b[size:], true
}

// replaceTable is the frame with another header table in place of its own. The new table has one
// header, which holds the bytes of the old table. If the frame would become too large, their last
// bytes are left out.
func replaceTable(frame []byte, table span) []byte {
	content := frame[table.from:table.to]
	const more = 1 + len(UnreadableHeader) + 1 + 4
	if room := max(minFrameMax, len(frame)) - len(frame); room < more {
		content = content[:max(0, len(content)-more)]
	}
	out := make([]byte, 0, len(frame)+more)
	out = append(out, frame[:table.from-4]...)
	out = binary.BigEndian.AppendUint32(out, uint32(more+len(content)))
	out = append(out, byte(len(UnreadableHeader)))
	out = append(out, UnreadableHeader...)
	out = append(out, 'x')
	out = binary.BigEndian.AppendUint32(out, uint32(len(content)))
	out = append(out, content...)
	out = append(out, frame[table.to:]...)
	binary.BigEndian.PutUint32(out[3:], uint32(len(out)-frameHead-frameEnd))
	return out
}
