package mysql

import (
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
)

func TestFault(t *testing.T) {
	s := &store{}
	for _, opened := range []bool{false, true} {
		s.opened.Store(opened)
		for number, want := range map[uint16]sqllog.Fault{
			errAccess:         {Retryable: opened, Denied: true},
			errNoTable:        {Retryable: opened, Denied: true},
			1213:              {Retryable: true},
			errTooLong:        {OfMessage: true},
			errPacketTooLarge: {OfMessage: true, TooLarge: true},
		} {
			if got := s.Fault(&mysql.MySQLError{Number: number}); got != want {
				t.Errorf("%d, opened %v: %+v, want %+v", number, opened, got, want)
			}
		}
	}
}
