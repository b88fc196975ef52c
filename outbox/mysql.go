package outbox

// Names are compared byte by byte, except for spaces at the end, which they cannot have. Each
// statement can be repeated, because here a transaction does not undo it.
const mysqlOptions = " ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"

var mysqlMigrations = [][]string{{
	// lane: the hash of topic and key, or of the id if there is no key.
	// created: microseconds since 1970; time: nanoseconds.
	// headers: JSON, [["name","value"],…]; a value that is not text: ["name","",base64].
	// payload: NULL is a tombstone. parked: why the row is not tried any more.
	`CREATE TABLE IF NOT EXISTS {outbox} (
	seq          BIGINT         NOT NULL AUTO_INCREMENT PRIMARY KEY,
	lane         BIGINT         NOT NULL,
	created      BIGINT         NOT NULL,
	time         BIGINT         NOT NULL,
	topic        VARCHAR(255)   NOT NULL,
	id           VARCHAR(255)   NOT NULL,
	msg_key      VARBINARY(255) NOT NULL,
	type         VARCHAR(255)   NOT NULL,
	source       VARCHAR(255)   NOT NULL,
	subject      VARCHAR(255)   NOT NULL,
	content_type VARCHAR(255)   NOT NULL,
	headers      LONGTEXT       NULL,
	payload      LONGBLOB       NULL,
	parked       TEXT           NULL
)` + mysqlOptions,
	`CREATE TABLE IF NOT EXISTS {outbox_relay} (
	id      VARCHAR(36) NOT NULL PRIMARY KEY,
	expires BIGINT      NOT NULL
)` + mysqlOptions,
	`CREATE TABLE IF NOT EXISTS {outbox_bucket} (
	bucket SMALLINT    NOT NULL PRIMARY KEY,
	owner  VARCHAR(36) NULL
)` + mysqlOptions,
	"INSERT IGNORE INTO {outbox_bucket} (bucket) VALUES " + numberRows(buckets),
	// id: bytes, because a collation ignores spaces at the end.
	`CREATE TABLE IF NOT EXISTS {inbox} (
	grp   VARCHAR(255)   NOT NULL,
	topic VARCHAR(255)   NOT NULL,
	id    VARBINARY(255) NOT NULL,
	at    BIGINT         NOT NULL,
	PRIMARY KEY (grp, topic, id),
	INDEX (at)
)` + mysqlOptions,
	`CREATE TABLE IF NOT EXISTS {outbox_meta} (
	one     INT         NOT NULL PRIMARY KEY,
	id      VARCHAR(36) NOT NULL, -- of this outbox: others may publish on the same broker
	version INT         NOT NULL,
	moves   BIGINT      NOT NULL
)` + mysqlOptions,
	`INSERT IGNORE INTO {outbox_meta} (one, id, version, moves) VALUES (1, UUID(), 0, 0)`,
}, {
	// Every publisher holds a shared lock of one row, chosen at random, until its transaction ends:
	// see floor.go.
	`CREATE TABLE IF NOT EXISTS {outbox_fence} (
	slot SMALLINT NOT NULL PRIMARY KEY
)` + mysqlOptions,
	"INSERT IGNORE INTO {outbox_fence} (slot) VALUES " + numberRows(fenceSlots),
}}
