package dedupsql

import (
	"fmt"
	"strconv"
	"strings"
)

// Dialect is a database's SQL.
type Dialect string

// The dialects. MySQL is also that of MariaDB.
const (
	Postgres Dialect = "postgres"
	MySQL    Dialect = "mysql"
	SQLite   Dialect = "sqlite"
)

// statements holds the statements of one table. Ids and scopes are bytes: a text column would
// refuse some of them, and in MySQL take different ones for equal.
type statements struct {
	create []string
	table  string
	upsert string // follows the rows of an INSERT
	sweep  string
	dollar bool // placeholders are numbered
}

func statementsOf(d Dialect, table string) (statements, error) {
	const create = "CREATE TABLE IF NOT EXISTS %[1]s (scope %[2]s NOT NULL, id %[2]s NOT NULL, until BIGINT NOT NULL, PRIMARY KEY (scope, id)"
	bare := table[strings.LastIndexByte(table, '.')+1:]
	// The index is for sweeps: without it, each would look through the whole table.
	index := fmt.Sprintf("CREATE INDEX IF NOT EXISTS %s_until ON %s (until)", bare, table)
	if d == SQLite { // there, the index's name has the schema
		index = fmt.Sprintf("CREATE INDEX IF NOT EXISTS %s_until ON %s (until)", table, bare)
	}
	s := statements{table: table}
	switch d {
	case Postgres:
		s.create = []string{fmt.Sprintf(create+")", table, "bytea"), index}
		s.upsert = " ON CONFLICT (scope, id) DO UPDATE SET until = excluded.until"
		s.sweep = fmt.Sprintf("DELETE FROM %[1]s WHERE (scope, id) IN (SELECT scope, id FROM %[1]s WHERE until <= $1 LIMIT %[2]d) AND until <= $1", table, sweepRows)
		s.dollar = true
	case MySQL:
		s.create = []string{fmt.Sprintf(create+", KEY (until))", table, "VARBINARY(255)")}
		s.upsert = " ON DUPLICATE KEY UPDATE until = VALUES(until)" // the only way that MariaDB knows too
		s.sweep = fmt.Sprintf("DELETE FROM %s WHERE until <= ? LIMIT %d", table, sweepRows)
	case SQLite:
		s.create = []string{fmt.Sprintf(create+") WITHOUT ROWID", table, "BLOB"), index}
		s.upsert = " ON CONFLICT (scope, id) DO UPDATE SET until = excluded.until"
		s.sweep = fmt.Sprintf("DELETE FROM %[1]s WHERE (scope, id) IN (SELECT scope, id FROM %[1]s WHERE until <= ? LIMIT %[2]d)", table, sweepRows)
	default:
		return s, fmt.Errorf("dialect is %q: want %q, %q or %q", d, Postgres, MySQL, SQLite)
	}
	return s, nil
}

// sweepRows is the number of rows that one statement of a sweep deletes: few enough to hold up
// nobody.
const sweepRows = 1000

// seen selects the remembered ids among n. Parameters: scope, time, ids.
func (s statements) seen(n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "SELECT id FROM %s WHERE scope = %s AND until > %s AND id IN (", s.table, s.place(1), s.place(2))
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(s.place(3 + i))
	}
	b.WriteByte(')')
	return b.String()
}

// remember inserts n rows. Parameters: scope, id, time of each.
func (s statements) remember(n int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "INSERT INTO %s (scope, id, until) VALUES ", s.table)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "(%s,%s,%s)", s.place(3*i+1), s.place(3*i+2), s.place(3*i+3))
	}
	b.WriteString(s.upsert)
	return b.String()
}

func (s statements) place(i int) string {
	if s.dollar {
		return "$" + strconv.Itoa(i)
	}
	return "?"
}
