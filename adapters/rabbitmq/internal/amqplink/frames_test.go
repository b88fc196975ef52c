package amqplink

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// frameOf is a header frame with these contents of its header table.
func frameOf(channel uint16, table []byte) []byte {
	payload := binary.BigEndian.AppendUint16(nil, 60)
	payload = append(payload, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5)
	payload = binary.BigEndian.AppendUint16(payload, hasContentType|hasHeaders|1<<12)
	payload = append(append(payload, 3), "a/b"...)
	payload = binary.BigEndian.AppendUint32(payload, uint32(len(table)))
	payload = append(append(payload, table...), 2)
	frame := binary.BigEndian.AppendUint16([]byte{frameHeader}, channel)
	frame = binary.BigEndian.AppendUint32(frame, uint32(len(payload)))
	return append(append(frame, payload...), 0xce)
}

// All that can be read passes unchanged, however the bytes arrive and are asked for.
func TestFramesPass(t *testing.T) {
	var stream []byte
	stream = append(stream, 1, 0, 0, 0, 0, 0, 2, 'x', 'y', 0xce)
	for i := range 50 {
		name := strings.Repeat("n", min(1+i*6, 255))
		table := append([]byte{byte(len(name))}, name...)
		stream = append(stream, frameOf(uint16(i), append(table, 't', 1))...)
		stream = append(stream, 3, 0, 0, 0, 0, byte(i), 0)
		stream = append(append(stream, make([]byte, i<<8)...), 0xce)
	}
	stream = append(stream, frameOf(1, nil)...)
	stream = append(stream, 8, 0, 0, 0, 0, 0, 0, 0xce)
	for name, r := range map[string]io.Reader{ // with names of up to 255 bytes
		"whole": bytes.NewReader(stream), "bytes": iotest.OneByteReader(bytes.NewReader(stream)),
		"halves": iotest.HalfReader(bytes.NewReader(stream)), "with the end": iotest.DataErrReader(bytes.NewReader(stream)),
	} {
		got, err := io.ReadAll(newFrames(r))
		if err != nil || !bytes.Equal(got, stream) {
			t.Errorf("%s: %d of %d bytes: %v", name, len(got), len(stream), err)
		}
		got, err = io.ReadAll(iotest.OneByteReader(newFrames(bytes.NewReader(stream))))
		if err != nil || !bytes.Equal(got, stream) {
			t.Errorf("byte by byte: %d of %d bytes: %v", len(got), len(stream), err)
		}
	}
}

// A table that is replaced keeps the frame within the agreed size.
func TestFramesReplaceTables(t *testing.T) {
	for _, size := range []int{100, minFrameMax - 60, minFrameMax, FrameSize - 100} {
		table := append([]byte{1, 'a', 'S'}, binary.BigEndian.AppendUint32(nil, uint32(size))...) // longer than the frame's content
		table = append(table, make([]byte, size-len(table))...)
		in := append(frameOf(7, table), frameOf(8, nil)...)
		first := len(frameOf(7, table))
		got, err := io.ReadAll(newFrames(bytes.NewReader(in)))
		if err != nil || !bytes.HasSuffix(got, frameOf(8, nil)) {
			t.Fatalf("%d: %v", size, err)
		}
		frame := got[:len(got)-len(frameOf(8, nil))]
		if len(frame) != frameLength(frame) || len(frame) > max(first, minFrameMax) || frame[len(frame)-1] != 0xce || frame[len(frame)-2] != 2 {
			t.Errorf("%d: %d bytes for %d: % x", size, len(frame), first, frame[:min(60, len(frame))])
		}
		at, ok := tableOf(frame[:len(frame)-1])
		if !ok || !readTable(frame[at.from:at.to], 0) || !bytes.Contains(frame, table[:len(table)/2]) {
			t.Errorf("%d: the table cannot be read: %v", size, ok)
		}
	}
}
