package watermill

import (
	"context"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
)

// Handler makes a Watermill handler one for a Millrace router: its error goes through the failure
// policy, and the messages that it produces are emitted to topic, with its success. A handler that
// must not produce anything has topic "". Its calls of Ack and Nack have no effect: its return
// decides.
func Handler(h message.HandlerFunc, topic string) bus.Handler {
	return bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error {
		w := ToWatermill(m)
		w.SetContext(ctx)
		produced, err := h(w)
		if err != nil || len(produced) == 0 {
			return err
		}
		if topic == "" {
			return bus.Permanent(fmt.Errorf("%w: the Watermill handler produced %d messages, and has no topic for them", bus.ErrInvalid, len(produced)))
		}
		msgs := make([]*bus.Message, len(produced))
		for i, p := range produced {
			msgs[i] = FromWatermill(p)
		}
		return bus.Emitter(ctx).PublishMessages(ctx, topic, msgs...)
	})
}

// Middleware makes a Watermill middleware one for a Millrace router. The handler sees its changes
// to the message and the context. Handlers of batches are given their messages one by one.
//
// Two things differ. Handlers of Millrace do not return their publications, so a middleware that
// works on produced messages (CorrelationID) finds none. A middleware that produces messages is a
// permanent error. And Ack and Nack have no effect: InstantAck does nothing.
func Middleware(mw message.HandlerMiddleware) bus.Middleware {
	return func(next bus.Handler) bus.Handler {
		return Handler(mw(func(w *message.Message) ([]*message.Message, error) {
			return nil, next.Handle(w.Context(), FromWatermill(w))
		}), "")
	}
}

// HandlerMiddleware makes a Millrace middleware one for a Watermill router. It publishes its
// outputs on b, which may be the bus of a [Publisher]. An error marked by [bus.Ignore] acks;
// Watermill does not know other marks.
func HandlerMiddleware(b *bus.Bus, mw bus.Middleware) message.HandlerMiddleware {
	return func(h message.HandlerFunc) message.HandlerFunc {
		return func(w *message.Message) ([]*message.Message, error) {
			var produced []*message.Message
			handler := mw(bus.HandlerFunc(func(ctx context.Context, m *bus.Message) error {
				inner := ToWatermill(m)
				inner.SetContext(ctx)
				var err error
				produced, err = h(inner)
				return err
			}))
			ctx := w.Context()
			m := FromWatermill(w)
			handling := engine.New(ctx, b, bus.Delivery{
				Message: m, Topic: message.SubscribeTopicFromCtx(ctx), Handler: message.HandlerNameFromCtx(ctx), Attempt: 1,
			})
			if err := handler.Handle(handling, m); err != nil {
				engine.Discard(handling)
				if bus.IsIgnored(err) {
					err = nil
				}
				return nil, err
			}
			if err := engine.Flush(ctx, handling, nil); err != nil {
				return nil, err
			}
			return produced, nil
		}
	}
}
