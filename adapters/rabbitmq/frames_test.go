package rabbitmq

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
)

// The limits of the client library.
const (
	maxDepth    = 32
	maxElements = 8192
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
		ch, err := pub.pub.link.Current().Conn.Channel()
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
		if broken := m.Headers.Get(amqplink.UnreadableHeader) != ""; broken != (headers[m.ID] != nil) {
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
