package conformance_test

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync/atomic"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// messageDefects are defects in publishing, and in what messages carry.
var messageDefects = []defect{
	{
		name: "payloads: nil becomes empty",
		make: func() *broken {
			return edit(func(m *bus.Message) {
				if m.Payload == nil {
					m.Payload = []byte{}
				}
			})
		},
		noticed: []string{"round-trip/fields"},
	},
	{name: "headers: repeats are dropped", make: func() *broken {
		return edit(func(m *bus.Message) {
			for i := range m.Headers {
				m.Headers.Set(m.Headers[i].Name, m.Headers.Get(m.Headers[i].Name))
				if i >= len(m.Headers)-1 {
					return
				}
			}
		})
	}, noticed: []string{"round-trip/fields", "failure/permanent"}},
	{name: "large payloads are cut", make: func() *broken {
		return edit(func(m *bus.Message) { m.Payload = m.Payload[:min(len(m.Payload), 100_000)] })
	}, noticed: []string{"round-trip/large"}},
	{name: "the key is lost", make: func() *broken { return edit(func(m *bus.Message) { m.Key = "" }) }, noticed: []string{"round-trip/through-the-router", "order/keys", "order/keys-while-failing", "failure/retry"}},
	{
		name: "publish: one of many is dropped, and nobody is told",
		make: func() *broken {
			var n atomic.Int64
			return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
				kept := slices.DeleteFunc(slices.Clone(msgs), func(*bus.Message) bool { return n.Add(1)%37 == 0 })
				return d.Publish(ctx, topic, kept)
			}}
		},
		noticed: []string{"publish/concurrent", "groups/fan-out", "groups/topics-apart", "groups/published-before", "groups/late", "groups/start-at", "lifecycle/pause"},
	},
	{name: "publish: an error is at the wrong index", make: func() *broken {
		return &broken{caps: func(c bus.Capabilities) bus.Capabilities { c.MaxMessage = 1 << 20; return c }, publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			if len(msgs) == 2 {
				return &bus.PublishError{Errs: []error{nil, errors.New("wrong place")}}
			}
			return d.Publish(ctx, topic, msgs)
		}}
	}, noticed: []string{"publish/errors-aligned"}},
	{name: "publish: an ended context is not heeded", make: func() *broken {
		return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			return d.Publish(context.WithoutCancel(ctx), topic, msgs)
		}}
	}, noticed: []string{"publish/cancelled"}},
	{name: "publish: works after close", make: func() *broken {
		return &broken{shut: func(driver.Driver, context.Context) error { return nil }}
	}, noticed: []string{"publish/closed"}},
	{name: "publish: says not published although it was", make: func() *broken {
		var n atomic.Int64
		return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			err := d.Publish(ctx, topic, msgs)
			if n.Add(1)%50 == 0 {
				return driver.FailAll(len(msgs), &bus.Error{Op: "publish", Err: errors.New("lie"), Definite: true})
			}
			return err
		}}
	}, noticed: []string{"publish/close-meanwhile"}},
	{name: "types change on the way", make: func() *broken {
		var n atomic.Int64
		return edit(func(m *bus.Message) {
			if m.Type == "typeD" {
				m.Type += strconv.FormatInt(n.Add(1), 10)
			}
		})
	}, noticed: []string{"types/skip-unknown"}},
	{name: "ids change on the way", make: func() *broken {
		var n atomic.Int64
		return edit(func(m *bus.Message) {
			if m.ID == "good" {
				m.ID += strconv.FormatInt(n.Add(1), 10)
			}
		})
	}, noticed: []string{"failure/deduplicate"}},
	{name: "headers are lost", make: func() *broken { return edit(func(m *bus.Message) { m.Headers = nil }) }, noticed: []string{"failure/correlation", "request/replies", "request/late"}},
	{name: "every message comes twice, and it takes long", make: twice, noticed: []string{"failure/unavailable", "ways/at-most-once", "ways/at-most-once-batch", "ways/at-least-once-batch", "ways/exactly-once-batch"}, long: true},
	{name: "every message comes twice", make: twice, noticed: []string{"groups/share", "order/concurrency-beyond-lanes", "bounds/in-flight", "bounds/bytes", "lifecycle/drain", "failure/batch", "failure/emit"}},
}

// twice is a driver that publishes everything twice. It says that it has transactions.
func twice() *broken {
	return &broken{
		caps: func(c bus.Capabilities) bus.Capabilities { c.Transactions = true; return c },
		publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			return d.Publish(ctx, topic, append(slices.Clone(msgs), msgs...))
		},
	}
}
