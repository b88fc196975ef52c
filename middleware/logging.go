package middleware

import (
	"context"
	"log/slog"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/logattr"
)

// Logging logs the end of each call of a handler: at debug level if it succeeded, else at warn
// level with the error. It logs ids and names, never keys, payloads or headers.
//
// Put it outermost. It logs a panic only if Recover is inside of it; a router logs a panic in any
// case.
func Logging(l *slog.Logger) bus.Middleware {
	if l == nil {
		return invalidf("Logging: the log is nil")
	}
	return bus.Around(func(ctx context.Context, c bus.Call) error {
		start := time.Now()
		err := c.Next(ctx)
		level, outcome := slog.LevelDebug, "handled"
		if err != nil {
			level, outcome = slog.LevelWarn, "handler failed"
		}
		if !l.Enabled(ctx, level) {
			return err
		}
		d := bus.DeliveryFrom(ctx)
		attrs := []slog.Attr{
			slog.String("handler", d.Handler), slog.String("topic", d.Topic), slog.String("group", d.Group),
			slog.Int("messages", c.Len()), slog.Int("attempt", d.Attempt), slog.Duration("took", time.Since(start)),
		}
		for m := range c.Messages() {
			if c.Len() == 1 {
				attrs = append(attrs, slog.Any("id", logattr.Text(m.ID)), slog.Any("type", logattr.Text(m.Type)))
			}
		}
		if err != nil {
			attrs = append(attrs, slog.Any("err", err))
		}
		l.LogAttrs(ctx, level, outcome, attrs...)
		return err
	})
}
