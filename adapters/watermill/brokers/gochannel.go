package brokers

import (
	"context"
	"errors"
	"sync"

	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// channels are the gochannels that have a name. Poison stores, which a gochannel cannot be, are
// kept in memory beside it.
var channels = struct {
	sync.Mutex
	byName map[string]*channel
}{byName: map[string]*channel{}}

type channel struct {
	*gochannel.GoChannel
	poison *bus.Bus
	name   string
	users  int
}

func openGoChannel(_ context.Context, p *driver.Params) (driver.Driver, error) {
	u := p.URL()
	if u.Host != "" || u.Path != "" || u.User != nil {
		p.Fail("want watermill+gochannel: or watermill+gochannel:NAME, without slashes")
	}
	if err := p.Err(); err != nil {
		return nil, err
	}
	channels.Lock()
	defer channels.Unlock()
	c := channels.byName[u.Opaque]
	if c == nil {
		poison, err := memory.Open(memory.Config{})
		if err != nil {
			return nil, err
		}
		c = &channel{GoChannel: gochannel.NewGoChannel(gochannel.Config{Persistent: true}, wm.NopLogger{}), poison: poison, name: u.Opaque}
		if c.name != "" {
			channels.byName[c.name] = c
		}
	}
	c.users++
	subscribers := func(string) (message.Subscriber, error) { return &one{Subscriber: c.GoChannel}, nil }
	return watermill.Driver(open{c}, subscribers, watermill.Config{
		Broker: "watermill-gochannel", Replay: true, Poison: driver.Of(c.poison).Poison, Close: c.release,
	}), nil
}

// release closes the channel with its last user.
func (c *channel) release() error {
	channels.Lock()
	defer channels.Unlock()
	if c.users--; c.users > 0 {
		return nil
	}
	if c.name != "" {
		delete(channels.byName, c.name)
	}
	return errors.Join(c.Close(), c.poison.Close())
}

// open is a publisher that others use, too.
type open struct{ message.Publisher }

// Close implements message.Publisher.
func (open) Close() error { return nil }

// one is one subscription of a subscriber that others use, too: Close ends it alone.
type one struct {
	message.Subscriber
	cancel context.CancelFunc
}

// Subscribe implements message.Subscriber.
func (o *one) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	ctx, o.cancel = context.WithCancel(ctx)
	return o.Subscriber.Subscribe(ctx, topic)
}

// Close implements message.Subscriber.
func (o *one) Close() error {
	if o.cancel != nil {
		o.cancel()
	}
	return nil
}
