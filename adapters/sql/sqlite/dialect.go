package sqlite

import (
	"context"
	"database/sql"
	"strconv"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/internal/sqltext"
)

const writeLock = "UPDATE {meta} SET swept = swept WHERE FALSE"

func dialect(prefix string) *sqllog.Dialect {
	log := func(topic int64) string {
		if topic < 0 {
			return prefix + "event_" + strconv.FormatInt(-topic, 10)
		}
		return prefix + "log_" + strconv.FormatInt(topic, 10)
	}
	return &sqllog.Dialect{
		Templates:   sqltext.New(sqltext.SQLite, prefix, "{upsert}", "ON CONFLICT (grp, id) DO UPDATE SET entry = excluded.entry"),
		Name:        "sqlite",
		Prefix:      prefix,
		Integer:     "INTEGER",
		Guard:       writeLock,
		Draw:        "INSERT INTO {parked} AS p (grp, shard, pos, chg, due, free, msg_key, doc) VALUES (?, ?, 0, ?, 0, 0, ?, NULL) ON CONFLICT (grp, shard, pos) DO UPDATE SET chg = p.chg + excluded.chg",
		WriteLock:   writeLock,
		Log:         func(topic int64) (string, string) { return log(topic), "TRUE" },
		TableExists: "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = '" + prefix + "meta'",
		CreateTopic: func(ctx context.Context, tx *sql.Tx, topic int64) error {
			if topic < 0 {
				return createEvents(ctx, tx, log(topic))
			}
			_, err := tx.ExecContext(ctx, "CREATE TABLE IF NOT EXISTS "+log(topic)+" "+logColumns)
			return err
		},
		Migrations: migrations,
		Writers:    1,
		BatchRows:  1000,
		BatchBytes: 8 << 20,
	}
}

// A topic's messages are a table of their own, in the order of seq: publishing appends to one place
// of the file, which is twice as fast as a table or an index in the order of shards, and a reader
// passes over no other topic's messages. SQLite numbers them, from the greatest number that is
// there, as long as the newest message is never deleted.
const logColumns = `(
	seq          INTEGER PRIMARY KEY,
	shard        INTEGER NOT NULL,
	created      INTEGER NOT NULL, -- microseconds since 1970
	id           TEXT NOT NULL,
	msg_key      BLOB NOT NULL,
	type         TEXT NOT NULL,
	source       TEXT NOT NULL,
	subject      TEXT NOT NULL,
	time         INTEGER NOT NULL, -- nanoseconds since 1970
	content_type TEXT NOT NULL,
	headers      TEXT,             -- JSON: [["name","value"],…]; a value that is not text: ["name","",base64]
	payload      BLOB              -- NULL: a tombstone
)`

var migrations = [][]string{
	{
		`CREATE TABLE {topic} (
	id     INTEGER PRIMARY KEY,
	name   TEXT NOT NULL UNIQUE,
	shards INTEGER NOT NULL
)`,
		`CREATE TABLE {grp} (
	id    INTEGER PRIMARY KEY,
	topic INTEGER NOT NULL,
	name  TEXT NOT NULL,
	moves INTEGER NOT NULL,
	UNIQUE (topic, name)
)`,
		`CREATE TABLE {lane} (
	grp   INTEGER NOT NULL,
	shard INTEGER NOT NULL,
	pos   INTEGER NOT NULL, -- the first unfinished position
	win   BLOB,             -- what is finished beyond it
	epoch INTEGER NOT NULL, -- grows with each owner
	owner TEXT,             -- a member; NULL: nobody
	PRIMARY KEY (grp, shard)
) WITHOUT ROWID`,
		`CREATE TABLE {member} (
	id      TEXT PRIMARY KEY,
	grp     INTEGER NOT NULL,
	expires INTEGER NOT NULL -- microseconds since 1970
) WITHOUT ROWID`,
		`CREATE INDEX {member}_grp ON {member} (grp)`,
		`CREATE TABLE {poison} (
	ord   INTEGER PRIMARY KEY,
	grp   TEXT NOT NULL,
	id    TEXT NOT NULL,
	entry TEXT NOT NULL,
	UNIQUE (grp, id)
)`,
		`CREATE TABLE {meta} (
	version INTEGER NOT NULL,
	install TEXT NOT NULL,
	swept   INTEGER NOT NULL
)`,
		`INSERT INTO {meta} (version, install, swept) VALUES (0, lower(hex(randomblob(16))), 0)`,
	},
	{
		`CREATE TABLE {parked} (
	grp     INTEGER NOT NULL,
	shard   INTEGER NOT NULL,
	pos     INTEGER NOT NULL, -- 0: the lane's counter, in chg
	chg     INTEGER NOT NULL, -- number of the last change from outside
	due     INTEGER NOT NULL, -- microseconds since 1970; 0: any time
	free    INTEGER NOT NULL, -- 1: its key does not wait for it
	msg_key BLOB    NOT NULL,
	doc     TEXT,             -- NULL: withdrawn
	PRIMARY KEY (grp, shard, pos)
)`,
	},
	eventMigration,
}
