// Package sqltext makes the statements of several databases out of one template.
package sqltext

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// Flavor holds a database's own forms of the parts that databases write differently.
type Flavor struct {
	// Now is an expression for the database's time in microseconds since 1970.
	Now string
	// Insert and IfNew enclose an insert that skips existing rows.
	Insert, IfNew string
	// Numbered parameters are $1, $2; others are ?.
	Numbered bool
}

// The flavors. MySQL is MariaDB's too. Its time is UTC, because an hour of local time comes twice a
// year.
var (
	Postgres = Flavor{
		Now:    "(extract(epoch FROM clock_timestamp()) * 1000000)::int8",
		Insert: "INSERT INTO", IfNew: "ON CONFLICT DO NOTHING", Numbered: true,
	}
	MySQL = Flavor{
		Now:    "TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))",
		Insert: "INSERT IGNORE INTO",
	}
	SQLite = Flavor{
		Now:    "CAST(unixepoch('subsec') * 1000000 AS INTEGER)",
		Insert: "INSERT INTO", IfNew: "ON CONFLICT DO NOTHING",
	}
)

// Templates makes statements for one database. A template has ? for each parameter, and words in
// braces. {now}, {insert} and {ifnew} are the flavor's; any other word is the name of a table,
// which gets the prefix. Braces and question marks have no other use in a template, not even in a
// literal. It is safe for concurrent use.
type Templates struct {
	words    *strings.Replacer
	numbered bool
	kept     sync.Map // template to statement
}

// New returns templates with the prefix of the tables: "millrace." or "millrace_". more holds
// further words and their texts, in pairs: "{upsert}", "ON CONFLICT …".
func New(f Flavor, prefix string, more ...string) *Templates {
	words := append([]string{"{now}", f.Now, "{insert}", f.Insert, "{ifnew}", f.IfNew}, more...)
	return &Templates{words: strings.NewReplacer(append(words, "{", prefix, "}", "")...), numbered: f.Numbered}
}

// SQL returns the statement of a template and keeps it for ever: pass constants, or one of a few
// texts.
func (t *Templates) SQL(template string) string {
	if s, ok := t.kept.Load(template); ok {
		return s.(string)
	}
	s := t.Compile(template)
	t.kept.Store(template, s)
	return s
}

// Compile returns the statement of a template and does not keep it.
func (t *Templates) Compile(template string) string {
	text := t.words.Replace(template)
	if !t.numbered {
		return text
	}
	b := make([]byte, 0, len(text)+16)
	n := 0
	for i := range len(text) {
		if text[i] != '?' {
			b = append(b, text[i])
			continue
		}
		n++
		b = strconv.AppendInt(append(b, '$'), int64(n), 10)
	}
	return string(b)
}

var errName = errors.New("want 1 to 40 of the characters a-z 0-9 _, the first a letter")

// CheckName reports why a schema, or the prefix of tables, cannot be part of statements. The error
// calls the name by the word in what.
func CheckName(what, name string) error {
	bad := name == "" || len(name) > 40 || name[0] < 'a' || name[0] > 'z'
	for i := 0; i < len(name) && !bad; i++ {
		c := name[i]
		bad = !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '_')
	}
	if bad {
		return fmt.Errorf("%s is %.60q: %w", what, name, errName)
	}
	return nil
}
