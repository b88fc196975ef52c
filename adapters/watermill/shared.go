package watermill

import (
	"context"
	"slices"

	"github.com/millrace-go/millrace/bus"
)

// Shared makes a bus for topics that Watermill services use too, over Millrace's own driver d for Kafka or RabbitMQ: those
// services keep their default marshalers. What is published can be read by them: the id as UUID, headers as metadata, and
// no header is anything but one text. What they publish is read as [FromWatermill] does.
//
//	b, err := kafka.Open(ctx, config)
//	b = bus.New(watermill.Shared(b.Driver()))
//
// It need not stay: a service that reads through d alone sees the same messages, and Watermill's UUID as a header.
func Shared(d bus.Driver) bus.Driver { return &shared{d} }

type shared struct{ bus.Driver }

// As looks for target in the driver, for [bus.As].
func (d *shared) As(target any) bool {
	a, ok := d.Driver.(interface{ As(target any) bool })
	return ok && a.As(target)
}

// Publish implements bus.Driver.
func (d *shared) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	nullable := d.Capabilities().Broker == "kafka" // elsewhere Millrace marks a tombstone with a header that is no text
	slab := make([]bus.Message, len(msgs))
	readable := make([]*bus.Message, len(msgs))
	for i, m := range msgs {
		slab[i] = *m
		headers, x := plain(m.Headers)
		headers = append(slices.Clip(headers), bus.Header{Name: UUIDHeader, Value: m.ID})
		if m.Payload == nil && !nullable {
			slab[i].Payload = []byte{}
			headers = append(headers, bus.Header{Name: tombstoneMetadata, Value: "true"})
		}
		if value := x.String(); value != "" {
			headers = append(headers, bus.Header{Name: exactMetadata, Value: value})
		}
		sortHeaders(headers) // RabbitMQ's driver notes another order in a list
		slab[i].Headers = headers
		readable[i] = &slab[i]
	}
	return d.Driver.Publish(ctx, topic, readable)
}

// Subscribe implements bus.Driver.
func (d *shared) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	src, err := d.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	if p, ok := src.(bus.ParkingSource); ok {
		return &sharedParking{ParkingSource: p}, nil
	}
	return &sharedSource{src}, nil
}

type sharedSource struct{ bus.Source }

// Receive implements bus.Source.
func (s *sharedSource) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	return receiveShared(ctx, s.Source, dst, maxBytes)
}

// sharedParking leaves what was parked as it is: it was read by Receive before.
type sharedParking struct{ bus.ParkingSource }

// Receive implements bus.Source.
func (s *sharedParking) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	return receiveShared(ctx, s.ParkingSource, dst, maxBytes)
}

func receiveShared(ctx context.Context, s bus.Source, dst []bus.Delivery, maxBytes int) (int, error) {
	n, err := s.Receive(ctx, dst, maxBytes)
	for i := range n {
		if m := dst[i].Message; slices.ContainsFunc(m.Headers, func(h bus.Header) bool { return h.Name == UUIDHeader }) {
			absorb(m)
		}
	}
	return n, err
}
