package sqltext_test

import (
	"strings"
	"testing"

	"github.com/millrace-go/millrace/internal/sqltext"
)

func TestTemplates(t *testing.T) {
	postgres := sqltext.New(sqltext.Postgres, "bus.", "{upsert}", "ON CONFLICT (id) DO UPDATE SET n = excluded.n")
	mysql := sqltext.New(sqltext.MySQL, "bus_", "{upsert}", "ON DUPLICATE KEY UPDATE n = VALUES(n)")
	sqlite := sqltext.New(sqltext.SQLite, "bus_")
	for _, test := range []struct {
		templates      *sqltext.Templates
		template, want string
	}{
		{postgres, "", ""},
		{postgres, "SELECT 1", "SELECT 1"},
		{postgres, "UPDATE {lane} SET pos = ? WHERE grp = ?", "UPDATE bus.lane SET pos = $1 WHERE grp = $2"},
		{postgres, "{insert} {t} (id) VALUES (?) {ifnew}", "INSERT INTO bus.t (id) VALUES ($1) ON CONFLICT DO NOTHING"},
		{postgres, "INSERT INTO {t} VALUES (?) {upsert}", "INSERT INTO bus.t VALUES ($1) ON CONFLICT (id) DO UPDATE SET n = excluded.n"},
		{postgres, "SELECT {now} - ?", "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8 - $1"},
		{postgres, "VALUES (" + strings.Repeat("?, ", 11) + "?)", "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"},
		{postgres, "SELECT nextval('{log_seq}'), $1, 'ü'", "SELECT nextval('bus.log_seq'), $1, 'ü'"},
		{mysql, "UPDATE {lane} SET pos = ? WHERE grp = ?", "UPDATE bus_lane SET pos = ? WHERE grp = ?"},
		{mysql, "{insert} {t} (id) VALUES (?) {ifnew}", "INSERT IGNORE INTO bus_t (id) VALUES (?) "},
		{mysql, "INSERT INTO {t} VALUES (?) {upsert}", "INSERT INTO bus_t VALUES (?) ON DUPLICATE KEY UPDATE n = VALUES(n)"},
		{mysql, "SELECT {now}", "SELECT TIMESTAMPDIFF(MICROSECOND, TIMESTAMP'1970-01-01 00:00:00', UTC_TIMESTAMP(6))"},
		{sqlite, "{insert} {t} (id) VALUES (?) {ifnew}", "INSERT INTO bus_t (id) VALUES (?) ON CONFLICT DO NOTHING"},
		{sqlite, "SELECT {now}", "SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER)"},
		{sqlite, "SELECT 1 FROM {upsert}", "SELECT 1 FROM bus_upsert"}, // no word here, so it is a table
	} {
		for name, compile := range map[string]func(string) string{"Compile": test.templates.Compile, "SQL": test.templates.SQL, "SQL, kept": test.templates.SQL} {
			if got := compile(test.template); got != test.want {
				t.Errorf("%s of %q is %q, want %q", name, test.template, got, test.want)
			}
		}
	}
}

func TestCheckName(t *testing.T) {
	for name, good := range map[string]bool{
		"a": true, "millrace": true, "m_1": true, strings.Repeat("a", 40): true,
		"": false, strings.Repeat("a", 41): false, "1a": false, "_a": false, "A": false, "a b": false, "a;": false, "ä": false, "a{": false, "a?": false,
	} {
		err := sqltext.CheckName("Prefix", name)
		if good != (err == nil) {
			t.Errorf("%q: %v", name, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "Prefix is ") {
			t.Errorf("%q: %v does not say what it is of", name, err)
		}
	}
}
