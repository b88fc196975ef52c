package postgres

import (
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
)

func TestFault(t *testing.T) {
	s := &store{}
	for _, opened := range []bool{false, true} {
		s.opened.Store(opened)
		for code, want := range map[string]sqllog.Fault{
			"28P01": {Retryable: opened, Denied: true}, // a password that was changed
			"42501": {Retryable: opened, Denied: true},
			"42P01": {Retryable: opened, Denied: true},
			"3D000": {Retryable: opened, Denied: true},
			"26000": {Retryable: true},
			"40P01": {Retryable: true},
			"55P03": {Retryable: true},
			"23505": {OfMessage: true},
			"54000": {OfMessage: true, TooLarge: true},
		} {
			if got := s.Fault(&pgconn.PgError{Code: code}); got != want {
				t.Errorf("%s, opened %v: %+v, want %+v", code, opened, got, want)
			}
		}
	}
}
