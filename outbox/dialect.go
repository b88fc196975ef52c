package outbox

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Dialect is the kind of database that an outbox is in.
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

// now is an expression for the database's time in microseconds since 1970. Leases are compared with nothing else: the
// clocks of hosts differ.
func (d Dialect) now() string {
	switch d {
	case Postgres:
		return "(extract(epoch FROM clock_timestamp()) * 1000000)::int8"
	case MySQL:
		return "TIMESTAMPDIFF(MICROSECOND, '1970-01-01 00:00:00', UTC_TIMESTAMP(6))"
	default:
		return "CAST(unixepoch('subsec') * 1000000 AS INTEGER)"
	}
}

// insertNew and ifNew enclose an insert that passes over rows which exist.
func (d Dialect) insertNew() string {
	if d == MySQL {
		return "INSERT IGNORE INTO"
	}
	return "INSERT INTO"
}

func (d Dialect) ifNew() string {
	if d == MySQL {
		return ""
	}
	return "ON CONFLICT DO NOTHING"
}

// compiler makes statements of templates: {outbox} and the other words in braces are tables, {now}, {insert} and {ifnew}
// are as above, and ? is a parameter.
type compiler struct {
	dialect  Dialect
	words    *strings.Replacer
	compiled *sync.Map // template to statement: there are few
}

func newCompiler(d Dialect, prefix string) compiler {
	return compiler{d, strings.NewReplacer("{now}", d.now(), "{insert}", d.insertNew(), "{ifnew}", d.ifNew(), "{", prefix, "}", ""), &sync.Map{}}
}

func (c compiler) sql(template string) string {
	if s, ok := c.compiled.Load(template); ok {
		return s.(string)
	}
	s := c.compile(template)
	c.compiled.Store(template, s)
	return s
}

func (c compiler) compile(template string) string {
	text := c.words.Replace(template)
	if c.dialect != Postgres {
		return text
	}
	var b strings.Builder
	n := 0
	for _, ch := range []byte(text) { // no statement has a ? in a literal
		if ch != '?' {
			b.WriteByte(ch)
			continue
		}
		n++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
	}
	return b.String()
}

// integers is a list for use after IN, and its parameter if it has one: the text of a statement with a parameter stays
// the same, so that it is prepared once.
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
	case Postgres: // IS TRUE keeps the planner from making a join of it, which costs the square of the length without statistics
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

// triples is the rows as groups of numbers, with commas between them.
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

// joined is the numbers with commas between them.
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

// rows is n rows of parameters for VALUES.
func rows(n int, row string) string { return row + strings.Repeat(", "+row, n-1) }

// checkName says what is wrong with a name that becomes part of statements.
func checkName(what, name string) error {
	bad := name == "" || len(name) > 40 || name[0] < 'a' || name[0] > 'z'
	for i := 0; i < len(name) && !bad; i++ {
		c := name[i]
		bad = !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_')
	}
	if bad {
		return invalid("%s is %.60q: want 1 to 40 of the characters a-z 0-9 _, the first a letter", what, name)
	}
	return nil
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("outbox: %w: %w", errInvalid, fmt.Errorf(format, args...))
}
