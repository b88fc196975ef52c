package outbox

import "fmt"

func (o *Outbox) postgresMigrations() [][]string {
	var first []string
	if o.config.Schema != "" {
		// CREATE SCHEMA IF NOT EXISTS would need the right to create schemas even when there is
		// nothing to do.
		first = append(first, "DO $$ BEGIN IF to_regnamespace('"+o.config.Schema+"') IS NULL THEN CREATE SCHEMA "+o.config.Schema+"; END IF; END $$")
	}
	return [][]string{append(
		first,
		`CREATE SEQUENCE {outbox_seq} AS bigint CACHE 1`,
		// Every writer that draws a number holds this lock until its transaction ends. By it a
		// relay knows from where on rows may still appear: see floor.go. A default also covers rows
		// inserted by a trigger or another program. It does so whatever their search_path: the
		// names in it are looked up now.
		fmt.Sprintf(`CREATE FUNCTION {outbox_next}(seq regclass) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$ BEGIN
	PERFORM pg_advisory_xact_lock_shared(%d, 0);
	RETURN nextval(seq);
END $$`, o.lockClass()),
		`CREATE TABLE {outbox} (
	seq          bigint NOT NULL PRIMARY KEY DEFAULT {outbox_next}('{outbox_seq}'),
	lane         bigint NOT NULL, -- of topic and key, or of the id if there is no key
	created      bigint NOT NULL, -- microseconds since 1970
	time         bigint NOT NULL, -- nanoseconds since 1970
	topic        text   NOT NULL,
	id           text   NOT NULL,
	msg_key      bytea  NOT NULL,
	type         text   NOT NULL,
	source       text   NOT NULL,
	subject      text   NOT NULL,
	content_type text   NOT NULL,
	headers      text,            -- JSON: [["name","value"],…]; a value that is not text: ["name","",base64]
	payload      bytea,           -- NULL: a tombstone
	parked       text             -- why the row is not tried any more
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0)`,
		`CREATE INDEX ON {outbox} (seq) WHERE parked IS NOT NULL`,
		`CREATE TABLE {outbox_relay} (
	id      text   NOT NULL PRIMARY KEY,
	expires bigint NOT NULL -- microseconds since 1970
)`,
		`CREATE TABLE {outbox_bucket} (
	bucket smallint NOT NULL PRIMARY KEY,
	owner  text              -- a relay
)`,
		`INSERT INTO {outbox_bucket} (bucket) SELECT generate_series(0, 63)`,
		`CREATE TABLE {inbox} (
	grp   text   NOT NULL,
	topic text   NOT NULL,
	id    text   NOT NULL,
	at    bigint NOT NULL, -- microseconds since 1970
	PRIMARY KEY (grp, topic, id)
)`,
		`CREATE INDEX ON {inbox} (at)`,
		`CREATE TABLE {outbox_meta} (
	id      text   NOT NULL, -- of this outbox: others may publish on the same broker
	version int    NOT NULL,
	moves   bigint NOT NULL
)`,
		`INSERT INTO {outbox_meta} (id, version, moves) VALUES (md5(random()::text || clock_timestamp()::text), 0, 0)`,
	)}
}
