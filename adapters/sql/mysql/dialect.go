package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"strconv"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/internal/sqltext"
)

func dialect(prefix string) *sqllog.Dialect {
	// The server's locks are not of a database, and their names are short.
	lock := "SHA2(CONCAT('millrace ', DATABASE(), ' " + prefix + "'), 256)"
	return &sqllog.Dialect{
		Templates:  sqltext.New(sqltext.MySQL, prefix, "{upsert}", "ON DUPLICATE KEY UPDATE entry = VALUES(entry)"),
		Name:       "mysql",
		Prefix:     prefix,
		Integer:    "SIGNED",
		Draw:       "INSERT INTO {parked} (grp, shard, pos, chg, due, free, msg_key, doc) VALUES (?, ?, 0, ?, 0, 0, ?, NULL) ON DUPLICATE KEY UPDATE chg = chg + VALUES(chg)",
		ForUpdate:  " FOR UPDATE",
		SkipLocked: " FOR UPDATE SKIP LOCKED",
		Isolation:  sql.LevelReadCommitted,
		Log: func(topic int64) (string, string) {
			return prefix + logOf(topic), "topic = " + strconv.FormatInt(topic, 10)
		},
		TableExists: "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = '" + prefix + "meta'",
		Lock:        "SELECT GET_LOCK(" + lock + ", 60)",
		Unlock:      "DO RELEASE_LOCK(" + lock + ")",
		Migrations:  migrations,
		Durable:     true,
		Writers:     2,
		SpillRows:   256,
		BatchRows:   1000,
		BatchBytes:  4 << 20,
	}
}

// maxMessage returns the largest size of a message that fits into one packet of the server, with
// room for the rest of the statement. It must also fit as a document in base64, the form in which
// it is parked and poisoned.
func maxMessage(ctx context.Context, db *sql.DB) (int, error) {
	var packet int
	if err := db.QueryRowContext(ctx, "SELECT @@max_allowed_packet").Scan(&packet); err != nil {
		return 0, fmt.Errorf("ask for max_allowed_packet: %w", err)
	}
	return (packet - 64<<10) / 10 * 7, nil
}

// Names are compared byte by byte. Each statement can be repeated, because here a transaction does
// not undo it.
const options = " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"

var migrations = [][]string{
	{
		// Whoever publishes locks the topic's row until the commit.
		`CREATE TABLE IF NOT EXISTS {topic} (
	id     INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	name   VARCHAR(200) NOT NULL,
	shards INT NOT NULL,
	UNIQUE (name)
)` + options,
		// time: nanoseconds since 1970; created: microseconds.
		// headers: JSON, [["name","value"],…]; a value that is not text: ["name","",base64].
		// payload: NULL is a tombstone.
		// seq: numbers of all topics; the index is what AUTO_INCREMENT asks for.
		`CREATE TABLE IF NOT EXISTS {log} (
	topic        INT            NOT NULL,
	shard        SMALLINT       NOT NULL,
	seq          BIGINT         NOT NULL AUTO_INCREMENT,
	created      BIGINT         NOT NULL,
	time         BIGINT         NOT NULL,
	id           VARCHAR(255)   NOT NULL,
	msg_key      VARBINARY(255) NOT NULL,
	type         VARCHAR(255)   NOT NULL,
	source       VARCHAR(255)   NOT NULL,
	subject      VARCHAR(255)   NOT NULL,
	content_type VARCHAR(255)   NOT NULL,
	headers      LONGTEXT       NULL,
	payload      LONGBLOB       NULL,
	PRIMARY KEY (topic, shard, seq),
	INDEX (seq)
)` + options,
		`CREATE TABLE IF NOT EXISTS {grp} (
	id    INT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	topic INT NOT NULL,
	name  VARCHAR(200) NOT NULL,
	moves BIGINT NOT NULL,
	UNIQUE (topic, name)
)` + options,
		// pos: the first unfinished position; win: the finished positions beyond it; epoch: grows
		// with each owner; owner: a member, NULL is nobody.
		`CREATE TABLE IF NOT EXISTS {lane} (
	grp   INT            NOT NULL,
	shard SMALLINT       NOT NULL,
	pos   BIGINT         NOT NULL,
	win   VARBINARY(8192) NULL,
	epoch BIGINT         NOT NULL,
	owner VARCHAR(36)    NULL,
	PRIMARY KEY (grp, shard)
)` + options,
		// expires: microseconds since 1970.
		`CREATE TABLE IF NOT EXISTS {member} (
	id      VARCHAR(36) NOT NULL PRIMARY KEY,
	grp     INT         NOT NULL,
	expires BIGINT      NOT NULL,
	INDEX (grp)
)` + options,
		`CREATE TABLE IF NOT EXISTS {poison} (
	ord   BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	grp   VARCHAR(200)   NOT NULL,
	id    VARBINARY(255) NOT NULL,
	entry LONGTEXT       NOT NULL,
	UNIQUE (grp, id)
)` + options,
		`CREATE TABLE IF NOT EXISTS {meta} (
	one     INT          NOT NULL PRIMARY KEY,
	version INT          NOT NULL,
	install VARCHAR(64)  NOT NULL,
	swept   BIGINT       NOT NULL
)` + options,
		`INSERT IGNORE INTO {meta} (one, version, install, swept) VALUES (1, 0, UUID(), 0)`,
	},
	{
		// pos 0 is the lane's counter, in chg, which else is the number of the last change from
		// outside. due: microseconds since 1970, 0 is any time. free: 1 if its key does not wait
		// for it. doc: NULL is withdrawn.
		`CREATE TABLE IF NOT EXISTS {parked} (
	grp     INT            NOT NULL,
	shard   SMALLINT       NOT NULL,
	pos     BIGINT         NOT NULL,
	chg     BIGINT         NOT NULL,
	due     BIGINT         NOT NULL,
	free    SMALLINT       NOT NULL,
	msg_key VARBINARY(255) NOT NULL,
	doc     LONGTEXT       NULL,
	PRIMARY KEY (grp, shard, pos)
)` + options,
	},
	eventMigration,
}
