package memory

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/millrace-go/millrace/bus"
)

// driver is one opened bus on a store.
type busDriver struct {
	store *store

	mu      sync.Mutex
	sources map[*source]struct{}
	isOver  bool
	closed  chan struct{}
}

// Capabilities implements driver.Driver.
func (d *busDriver) Capabilities() bus.Capabilities {
	return bus.Capabilities{Broker: "memory", Replay: true, StartAt: true, Parking: true, MaxMessage: d.store.config.Bytes}
}

func fail(op, topic string, err error) error {
	return &bus.Error{Op: op, Broker: "memory", Topic: topic, Err: err, Definite: true, Retryable: !errors.Is(err, bus.ErrClosed)}
}

// Publish implements driver.Driver.
func (d *busDriver) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	t := d.store.topic(topic)
	if t.events != nil {
		return d.publishEvents(ctx, t.events, msgs)
	}
	n, err := t.append(ctx, d.closed, msgs)
	if err == nil {
		return nil
	}
	errs := make([]error, len(msgs))
	for i := n; i < len(msgs); i++ {
		errs[i] = fail("publish", topic, err)
	}
	return &bus.PublishError{Errs: errs}
}

// Subscribe implements driver.Driver.
func (d *busDriver) Subscribe(_ context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	if at, ok := s.Start.Time(); ok && at.IsZero() {
		return nil, fail("subscribe", s.Topic, fmt.Errorf("%w: start at the zero time", bus.ErrInvalid))
	}
	t := d.store.topic(s.Topic)
	src := &source{driver: d, topic: t, observer: o}
	src.wake = sync.NewCond(&t.mu)
	d.mu.Lock()
	if d.isOver {
		d.mu.Unlock()
		return nil, fail("subscribe", s.Topic, bus.ErrClosed)
	}
	d.sources[src] = struct{}{}
	d.mu.Unlock()
	t.join(src, s)
	return src, nil
}

// Lag implements driver.Lagger.
func (d *busDriver) Lag(_ context.Context, topic, group string) (bus.Lag, error) {
	select {
	case <-d.closed:
		return bus.Lag{}, fail("lag", topic, bus.ErrClosed)
	default:
	}
	return d.store.topic(topic).lag(group)
}

// Close implements driver.Driver.
func (d *busDriver) Close(ctx context.Context) error {
	d.mu.Lock()
	if d.isOver {
		d.mu.Unlock()
		return nil
	}
	d.isOver = true
	close(d.closed) // publishers that wait for room give up
	var open []*source
	for s := range d.sources {
		open = append(open, s)
	}
	d.mu.Unlock()
	var errs []error
	for _, s := range open {
		errs = append(errs, s.Close(ctx))
	}
	shared.close(d.store)
	return errors.Join(errs...)
}
