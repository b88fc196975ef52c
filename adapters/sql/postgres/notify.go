package postgres

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
)

// Notify implements sqllog.Notifier.
func (s *store) Notify(ctx context.Context, texts []string) error {
	_, err := s.pool.Exec(ctx, s.notify, s.channel, texts)
	return err
}

// Listen implements sqllog.Notifier, on a connection of its own, which does not count against the
// pool's bound.
func (s *store) Listen(ctx context.Context, ready func(), heard func(text string)) error {
	pooled, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	conn := pooled.Hijack()
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing) // the session ends in any case
	}()
	if _, err := conn.Exec(ctx, "LISTEN "+pgx.Identifier{s.channel}.Sanitize()); err != nil {
		return err
	}
	ready()
	for {
		n, err := conn.WaitForNotification(ctx)
		if err != nil {
			return err
		}
		heard(n.Payload)
	}
}
