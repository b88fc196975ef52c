package sqlite

import (
	"context"
	"strings"
	"time"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/bus/driver"
)

// Settle implements sqllog.Store.
func (s *store) Settle(ctx context.Context, x driver.Execer, group int64, member string, p *sqllog.Progress) (bool, error) {
	r, err := x.ExecContext(ctx, s.topic(p.Basis.Topic).commit.text, commitArgs(group, member, p)...)
	if err != nil {
		return false, err
	}
	n, err := r.RowsAffected()
	return n > 0, err
}

// AppendIn implements sqllog.Store.
func (s *store) AppendIn(ctx context.Context, x driver.Execer, batch []sqllog.Record) error {
	created := time.Now().UnixMicro() // inside the transaction, so that it grows with the position
	for len(batch) > 0 {
		n := 1
		for n < len(batch) && n < insertRows && batch[n].Topic == batch[0].Topic {
			n++
		}
		args := make([]any, 0, n*11)
		for i := range n {
			args = appendRow(args, &batch[i], created)
		}
		log, _ := s.dialect.Log(batch[0].Topic)
		insert := "INSERT INTO " + log + insertColumns + "VALUES "
		if _, err := x.ExecContext(ctx, insert+"(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"+strings.Repeat(", (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", n-1), args...); err != nil {
			return err
		}
		batch = batch[n:]
	}
	return nil
}
