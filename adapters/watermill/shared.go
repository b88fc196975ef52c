package watermill

import (
	"context"
	"reflect"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Shared makes a bus for topics that Watermill services use too, over Millrace's own driver d for
// Kafka or RabbitMQ: those services keep their default marshalers. They can read the bus's
// messages: the id is the UUID, headers are metadata, and each header is one text. The bus reads
// their messages as [FromWatermill] does.
//
//	b, err := kafka.Open(ctx, config)
//	b = bus.New(watermill.Shared(b.Driver()))
//
// It has the abilities of d, transactions, parking and replays included. It need not stay: a
// service that reads through d alone sees the same messages, and Watermill's UUID as a header.
func Shared(d bus.Driver) bus.Driver { return &shared{driver.Of(bus.New(d))} }

type shared struct{ driver.Driver }

// As finds target in the driver, for [bus.As]: an ability of the driver itself, or a value inside
// it.
func (d *shared) As(target any) bool {
	if v := reflect.ValueOf(target).Elem(); reflect.TypeOf(d.Driver).AssignableTo(v.Type()) {
		v.Set(reflect.ValueOf(d.Driver))
		return true
	}
	a, ok := d.Driver.(interface{ As(target any) bool })
	return ok && a.As(target)
}

// Publish implements driver.Driver.
func (d *shared) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	readable := make([]*bus.Message, len(msgs))
	for i, m := range msgs {
		readable[i] = d.readable(m)
	}
	return d.Driver.Publish(ctx, topic, readable)
}

// readable is m as Watermill services can read it.
func (d *shared) readable(m *bus.Message) *bus.Message {
	nullable := d.Capabilities().Broker == "kafka" // elsewhere Millrace marks a tombstone with a header that is no text
	changed := *m
	headers, x := plain(m.Headers)
	headers = append(slices.Clip(headers), bus.Header{Name: UUIDHeader, Value: m.ID})
	if m.Payload == nil && !nullable {
		changed.Payload = []byte{}
		headers = append(headers, bus.Header{Name: tombstoneMetadata, Value: "true"})
	}
	if value := x.String(); value != "" {
		headers = append(headers, bus.Header{Name: exactMetadata, Value: value})
	}
	sortHeaders(headers) // RabbitMQ's driver notes another order in a list
	changed.Headers = headers
	return &changed
}

// outputs returns a handler's outputs in the form that Watermill services can read.
func (d *shared) outputs(outputs []driver.Output) []driver.Output {
	readable := make([]driver.Output, len(outputs))
	for i, o := range outputs {
		readable[i] = o
		readable[i].Message = d.readable(o.Message)
	}
	return readable
}

// Subscribe implements driver.Driver. The source has the abilities of the driver's: routers look
// for them in it.
func (d *shared) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	src, err := d.Driver.Subscribe(ctx, s, o)
	if err != nil {
		return nil, err
	}
	base := &sharedSource{src}
	parks, canPark := src.(parking)
	switch t := src.(type) {
	case driver.JoiningSource:
		transacts, joins := transacting{t, d}, joining{t, d}
		if canPark {
			return struct {
				*sharedSource
				parking
				transacting
				joining
			}{base, parks, transacts, joins}, nil
		}
		return struct {
			*sharedSource
			transacting
			joining
		}{base, transacts, joins}, nil
	case driver.TransactionalSource:
		if canPark {
			return struct {
				*sharedSource
				parking
				transacting
			}{base, parks, transacting{t, d}}, nil
		}
		return struct {
			*sharedSource
			transacting
		}{base, transacting{t, d}}, nil
	}
	if canPark {
		return struct {
			*sharedSource
			parking
		}{base, parks}, nil
	}
	return base, nil
}

type sharedSource struct{ bus.Source }

// Receive implements bus.Source.
func (s *sharedSource) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	n, err := s.Source.Receive(ctx, dst, maxBytes)
	for i := range n {
		if m := dst[i].Message; slices.ContainsFunc(m.Headers, func(h bus.Header) bool { return h.Name == UUIDHeader }) {
			absorb(m)
		}
	}
	return n, err
}

// Commit implements driver.Committer. Where the driver's source is none, settlements are durable
// already.
func (s *sharedSource) Commit(ctx context.Context) error {
	if c, ok := s.Source.(driver.Committer); ok {
		return c.Commit(ctx)
	}
	return nil
}

// parking has the methods that driver.ParkingSource adds. Parked messages stay as they are: Receive
// has read them before.
type parking interface {
	Park(ctx context.Context, ps []driver.Parking) error
	Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error)
}

// transacting has the methods that driver.TransactionalSource adds.
type transacting struct {
	source driver.TransactionalSource
	driver *shared
}

// SettleWith implements driver.TransactionalSource.
func (t transacting) SettleWith(ctx context.Context, ss []driver.Settlement) error {
	readable := make([]driver.Settlement, len(ss))
	for i, s := range ss {
		readable[i] = driver.Settlement{Token: s.Token, Outputs: t.driver.outputs(s.Outputs)}
	}
	return t.source.SettleWith(ctx, readable)
}

// joining has the methods that driver.JoiningSource adds to transacting.
type joining struct {
	joins  driver.JoiningSource
	shares *shared
}

// SettleIn implements driver.JoiningSource.
func (j joining) SettleIn(ctx context.Context, tx driver.Execer, tokens []bus.Token, outputs []driver.Output) (end func(err error) error, err error) {
	return j.joins.SettleIn(ctx, tx, tokens, j.shares.outputs(outputs))
}
