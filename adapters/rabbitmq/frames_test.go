package rabbitmq

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
)

// foreignHeaders are tables that the broker takes and the client library does not.
func foreignHeaders() map[string]amqp.Table {
	deep := func(n int) (v any) {
		v = "bottom"
		for i := range n {
			if i%2 == 0 {
				v = amqp.Table{"d": v}
			} else {
				v = []any{v}
			}
		}
		return v
	}
	many := func(n int) []any {
		list := make([]any, n)
		for i := range list {
			list[i] = true
		}
		return list
	}
	wide := amqp.Table{}
	for i := range maxElements + 1 {
		wide[fmt.Sprint(i)] = nil
	}
	return map[string]amqp.Table{
		"deep":   {"v": deep(maxDepth + 1)},
		"deeper": {"v": deep(2000), "cloudEvents_id": "forged"},
		"many":   {"v": many(maxElements + 1)},
		"wide":   wide,
	}
}

// A message with headers that the client library refuses is a message that nobody can decode.
// Nothing else notices: the connection goes on, and so do the lanes, also those of other topics.
func TestHeadersThatCannotBeRead(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g", "h")
	c := brokerConfig(t)
	c.Lanes = 1
	pub, d := openDriver(t, brokerConfig(t)), openDriver(t, c)
	foreign := func(headers amqp.Table, body string) {
		t.Helper()
		ch, err := pub.pub.link.current().conn.Channel()
		if err != nil {
			t.Fatal(err)
		}
		defer ch.Close()
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		confirm, err := ch.PublishWithDeferredConfirm(topic, "", true, false, amqp.Publishing{Headers: headers, MessageId: body, Body: []byte(body)})
		if err != nil {
			t.Fatal(err)
		}
		if !confirm.Wait() {
			t.Fatalf("%s: refused", body)
		}
	}
	publish(t, pub, topic, message("m1", "")) // declares the topic
	headers := foreignHeaders()
	foreign(headers["deep"], "deep") // is moved to the group
	o := newObserver()
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o)
	other := newObserver()
	subscribe(t, d, bus.Subscription{Topic: topic, Group: "h"}, other)
	want := map[string]bool{"m1": true, "deep": true, "m2": true}
	for name, table := range headers {
		if name != "deep" {
			foreign(table, name)
			want[name] = true
		}
	}
	publish(t, pub, topic, message("m2", ""))
	for _, m := range receive(t, ctx, s, len(want)) {
		if !want[m.ID] {
			t.Errorf("%s came", m.ID)
		}
		delete(want, m.ID)
		if broken := m.Headers.Get(unreadableHeader) != ""; broken != (headers[m.ID] != nil) {
			t.Errorf("%s: unreadable: %v", m.ID, broken)
		} else if broken && (!strings.HasPrefix(m.ContentType, "application/cloudevents") || !bytes.HasSuffix(m.Payload, []byte(m.ID)) || len(m.Payload) < 200) {
			t.Errorf("%s: %q, %d bytes", m.ID, m.ContentType, len(m.Payload))
		}
		settle(t, s, []bus.Delivery{m})
	}
	for _, o := range []*observer{o, other} {
		o.mu.Lock()
		if len(o.lost) > 0 {
			t.Errorf("lost %v", o.lost)
		}
		o.mu.Unlock()
	}
}

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
	for _, size := range []int{100, minFrameMax - 60, minFrameMax, frameSize - 100} {
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
