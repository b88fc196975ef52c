package watermill

import (
	"context"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Publish implements driver.Driver. Publishers of Watermill need not heed a context, so when ctx
// ends the call goes on in the background: it is not known then whether it publishes.
func (d *busDriver) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if err := ctx.Err(); err != nil {
		return driver.FailAll(len(msgs), d.fail("publish", topic, err))
	}
	d.mu.Lock()
	if d.over {
		d.mu.Unlock()
		return driver.FailAll(len(msgs), d.fail("publish", topic, bus.ErrClosed))
	}
	d.publishing.Add(1)
	d.mu.Unlock()
	ws := make([]*message.Message, len(msgs))
	for i, m := range msgs {
		ws[i] = ToWatermill(m)
		if most := d.config.UUIDBytes; most > 0 && len(m.ID) > most {
			ws[i].UUID = strings.ToValidUTF8(m.ID[:most], "")
		}
		ws[i].SetContext(ctx)
	}
	step := d.config.Batch
	done := make(chan int, 1) // how many are published
	var failure error
	go func() {
		defer d.publishing.Done()
		n := 0
		for ; n < len(ws); n += step {
			if failure = ctx.Err(); failure != nil {
				break
			}
			if failure = d.pub.Publish(topic, ws[n:min(n+step, len(ws))]...); failure != nil {
				break
			}
		}
		done <- n
	}()
	errs := make([]error, len(msgs))
	select {
	case n := <-done:
		if n >= len(ws) {
			return nil
		}
		for i := n; i < len(errs); i++ {
			errs[i] = &bus.Error{Op: "publish", Broker: d.config.Broker, Topic: topic, Err: failure, Definite: i >= n+step, Retryable: true}
		}
	case <-ctx.Done():
		for i := range errs {
			errs[i] = &bus.Error{Op: "publish", Broker: d.config.Broker, Topic: topic, Err: ctx.Err(), Retryable: true}
		}
	}
	return &bus.PublishError{Errs: errs}
}
