package outbox

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/millrace-go/millrace/internal/sqltext"
)

// Dialect is the kind of an outbox's database.
type Dialect int

// The databases.
const (
	// Postgres is PostgreSQL, version 13 or newer.
	Postgres Dialect = iota + 1
	// MySQL is MariaDB 10.6 or newer, or MySQL 8.0, with InnoDB.
	MySQL
	// SQLite is SQLite 3.42 or newer.
	SQLite
)

func (d Dialect) String() string {
	switch d {
	case Postgres:
		return "postgres"
	case MySQL:
		return "mysql"
	case SQLite:
		return "sqlite"
	}
	return "Dialect(" + strconv.Itoa(int(d)) + ")"
}

func (d Dialect) flavor() sqltext.Flavor {
	switch d {
	case Postgres:
		return sqltext.Postgres
	case MySQL:
		return sqltext.MySQL
	default:
		return sqltext.SQLite
	}
}

// compiler makes the outbox's statements.
type compiler struct {
	dialect   Dialect
	templates *sqltext.Templates
}

func newCompiler(d Dialect, prefix string) compiler {
	return compiler{d, sqltext.New(d.flavor(), prefix)}
}

func (c compiler) sql(template string) string     { return c.templates.SQL(template) }
func (c compiler) compile(template string) string { return c.templates.Compile(template) }

// integers returns a list for use after IN, and its parameter if it has one. The text of a
// statement with a parameter stays the same, so that it is prepared once.
func (c compiler) integers(list []int64) (text string, params []any) {
	switch c.dialect {
	case Postgres: // a hashed subplan, whatever the length
		return "(SELECT unnest(string_to_array(?, ',')::int8[]))", []any{joined(list)}
	case SQLite:
		return "(SELECT value FROM json_each(?))", []any{"[" + joined(list) + "]"}
	default: // without parameters, MySQL takes a statement in one round trip
		return "(" + joined(list) + ")", nil
	}
}

// rowIDs is a condition that is true for the rows in list, and its parameters.
func (c compiler) rowIDs(list []rowID) (condition string, params []any) {
	seqs, lanes, created := make([]int64, len(list)), make([]int64, len(list)), make([]int64, len(list))
	for i, r := range list {
		seqs[i], lanes[i], created[i] = r.seq, r.lane, r.created
	}
	const columns = "(seq, lane, created) IN "
	switch c.dialect {
	case Postgres: // IS TRUE keeps the planner from a join, of quadratic cost without statistics
		const ints = "string_to_array(?, ',')::int8[]"
		return "seq = ANY (" + ints + ") AND (" + columns + "(SELECT unnest(" + ints + "), unnest(" + ints + "), unnest(" + ints + "))) IS TRUE",
			[]any{joined(seqs), joined(seqs), joined(lanes), joined(created)}
	case SQLite:
		return "seq IN (SELECT value FROM json_each(?)) AND " + columns + "(SELECT value ->> 0, value ->> 1, value ->> 2 FROM json_each(?))",
			[]any{"[" + joined(seqs) + "]", "[" + triples(list, '[', ']') + "]"}
	default: // not all servers find rows by several columns in an index
		return "seq IN (" + joined(seqs) + ") AND " + columns + "(" + triples(list, '(', ')') + ")", nil
	}
}

// triples writes the rows as groups of numbers, with commas between them.
func triples(list []rowID, open, end byte) string {
	text := make([]byte, 0, 50*len(list))
	for i, r := range list {
		if i > 0 {
			text = append(text, ',')
		}
		text = append(strconv.AppendInt(append(text, open), r.seq, 10), ',')
		text = append(strconv.AppendInt(text, r.lane, 10), ',')
		text = append(strconv.AppendInt(text, r.created, 10), end)
	}
	return string(text)
}

// joined writes the numbers with commas between them.
func joined(list []int64) string {
	text := make([]byte, 0, 12*len(list))
	for i, n := range list {
		if i > 0 {
			text = append(text, ',')
		}
		text = strconv.AppendInt(text, n, 10)
	}
	return string(text)
}

// rows writes n rows of parameters for VALUES.
func rows(n int, row string) string { return row + strings.Repeat(", "+row, n-1) }

// checkName reports why a name cannot be part of statements.
func checkName(what, name string) error {
	if err := sqltext.CheckName(what, name); err != nil {
		return invalid("%w", err)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("outbox: %w: %w", errInvalid, fmt.Errorf(format, args...))
}
