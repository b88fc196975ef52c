package brokers

import (
	"context"
	"fmt"
	"sync"

	wm "github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill-amqp/v3/pkg/amqp"
	"github.com/ThreeDotsLabs/watermill/message"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq"
	"github.com/millrace-go/millrace/adapters/watermill"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// AMQPMarshaler is watermill-amqp's default marshaler, which also reads what that refuses and would
// be given again for ever: headers that are no strings, as Millrace's own driver, dead-letter
// exchanges and quorum queues write them.
type AMQPMarshaler struct{ amqp.DefaultMarshaler }

// Unmarshal implements amqp.Marshaler.
func (m AMQPMarshaler) Unmarshal(d amqp091.Delivery) (*message.Message, error) {
	headers := make(amqp091.Table, len(d.Headers)+1)
	for name, value := range d.Headers {
		switch v := value.(type) {
		case string:
			headers[name] = v
		case []byte:
			headers[name] = string(v)
		default:
			headers[name] = fmt.Sprint(v)
		}
	}
	if _, ok := headers[watermill.UUIDHeader]; !ok && d.MessageId != "" {
		headers[watermill.UUIDHeader] = d.MessageId
	}
	if _, ok := headers["content-type"]; !ok && d.ContentType != "" {
		headers["content-type"] = d.ContentType
	}
	d.Headers = headers
	return m.DefaultMarshaler.Unmarshal(d)
}

const (
	presetPubSub = "pubsub"
	presetQueue  = "queue"
)

func openAMQP(ctx context.Context, p *driver.Params) (driver.Driver, error) {
	u := *p.URL()
	if u.Host == "" {
		p.Fail("want watermill+amqp://user:password@host:5672/vhost")
	}
	preset := p.Enum("preset", presetPubSub, presetQueue)
	if err := p.Err(); err != nil {
		return nil, err
	}
	u.Scheme, u.RawQuery = "amqp", ""
	config := func(group string) amqp.Config {
		c := amqp.NewDurableQueueConfig(u.String())
		if preset == presetPubSub {
			c = amqp.NewDurablePubSubConfig(u.String(), amqp.GenerateQueueNameTopicNameWithSuffix(group))
		}
		c.Marshaler = AMQPMarshaler{}
		c.Publish.ConfirmDelivery = true
		return c
	}
	pub, err := within(ctx, func() (*amqp.Publisher, error) { return amqp.NewPublisher(config(""), wm.NopLogger{}) })
	if err != nil {
		return nil, &bus.Error{Op: "open", Broker: "watermill-amqp", Err: err, Retryable: true}
	}
	subscribers := func(group string) (message.Subscriber, error) {
		return amqp.NewSubscriber(config(group), wm.NopLogger{})
	}
	poison := &poisonOnRabbitMQ{url: u.String()}
	return watermill.Driver(pub, subscribers, watermill.Config{
		Broker: "watermill-amqp", Durable: true, Latest: preset == presetPubSub, Poison: poison.open, Close: poison.close,
	}), nil
}

// poisonOnRabbitMQ keeps poison entries by Millrace's own driver on the same server, because a
// queue cannot be looked through by watermill-amqp. It connects when it is first needed.
type poisonOnRabbitMQ struct {
	url string

	mu     sync.Mutex
	bus    *bus.Bus
	closed bool
}

func (p *poisonOnRabbitMQ) open(ctx context.Context, group string) (driver.PoisonStore, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, &bus.Error{Op: "poison", Broker: "watermill-amqp", Err: bus.ErrClosed}
	}
	if p.bus == nil {
		c, err := rabbitmq.ParseURL(p.url)
		if err != nil {
			return nil, err
		}
		if p.bus, err = rabbitmq.Open(ctx, c); err != nil {
			return nil, err
		}
	}
	return driver.Of(p.bus).Poison(ctx, group)
}

func (p *poisonOnRabbitMQ) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.bus == nil {
		return nil
	}
	return p.bus.Close()
}
