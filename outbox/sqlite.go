package outbox

import (
	"strconv"
	"strings"
)

// Each statement can be repeated.
var sqliteMigrations = [][]string{{
	`CREATE TABLE IF NOT EXISTS {outbox} (
	seq          INTEGER PRIMARY KEY AUTOINCREMENT,
	lane         INTEGER NOT NULL, -- of topic and key, or of the id if there is no key
	created      INTEGER NOT NULL, -- microseconds since 1970
	time         INTEGER NOT NULL, -- nanoseconds since 1970
	topic        TEXT NOT NULL,
	id           TEXT NOT NULL,
	msg_key      BLOB NOT NULL,
	type         TEXT NOT NULL,
	source       TEXT NOT NULL,
	subject      TEXT NOT NULL,
	content_type TEXT NOT NULL,
	headers      TEXT,             -- JSON: [["name","value"],…]; a value that is not text: ["name","",base64]
	payload      BLOB,             -- NULL: a tombstone
	parked       TEXT              -- why the row is not tried any more
)`,
	`CREATE TABLE IF NOT EXISTS {outbox_relay} (
	id      TEXT NOT NULL PRIMARY KEY,
	expires INTEGER NOT NULL -- microseconds since 1970
)`,
	`CREATE TABLE IF NOT EXISTS {outbox_bucket} (
	bucket INTEGER PRIMARY KEY,
	owner  TEXT               -- a relay
)`,
	"INSERT INTO {outbox_bucket} (bucket) VALUES " + numberRows(buckets) + " ON CONFLICT DO NOTHING",
	`CREATE TABLE IF NOT EXISTS {inbox} (
	grp   TEXT NOT NULL,
	topic TEXT NOT NULL,
	id    TEXT NOT NULL,
	at    INTEGER NOT NULL, -- microseconds since 1970
	PRIMARY KEY (grp, topic, id)
) WITHOUT ROWID`,
	`CREATE INDEX IF NOT EXISTS {inbox}_at ON {inbox} (at)`,
	`CREATE TABLE IF NOT EXISTS {outbox_meta} (
	one     INTEGER PRIMARY KEY,
	id      TEXT    NOT NULL, -- of this outbox: others may publish on the same broker
	version INTEGER NOT NULL,
	moves   INTEGER NOT NULL
)`,
	`INSERT INTO {outbox_meta} (one, id, version, moves) VALUES (1, lower(hex(randomblob(16))), 0, 0) ON CONFLICT DO NOTHING`,
}}

// numberRows is the rows (0), (1), … of n numbers.
func numberRows(n int) string {
	var b strings.Builder
	for i := range n {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString("(" + strconv.Itoa(i) + ")")
	}
	return b.String()
}
