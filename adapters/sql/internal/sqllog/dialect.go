package sqllog

import (
	"context"
	"database/sql"
	"strings"

	"github.com/millrace-go/millrace/internal/sqltext"
)

// Dialect is how a database wants the engine's own statements.
type Dialect struct {
	// Templates makes the statements. Beside the words of every flavor there is {upsert}: it ends
	// an insert into the poison table that replaces the entry if the row exists.
	*sqltext.Templates
	// Name is the broker's name in errors: "postgres".
	Name string
	// Prefix comes before the name of every table: "millrace." or "millrace_".
	Prefix string
	// Integer is the name, in a cast, of the type of 64-bit integers.
	Integer string
	// Draw adds to a lane's counter in the table parked, which it makes if need be: group, shard,
	// number, an empty key.
	Draw string
	// ForUpdate, behind a SELECT, locks the rows; SkipLocked leaves out those that others have
	// locked. "" where a transaction is alone anyway.
	ForUpdate, SkipLocked string
	// Guard begins a transaction. It has the server end a transaction that stands still or waits
	// too long for a lock, or it takes the lock of all writers. "" if the connections see to that.
	Guard string
	// WriteLock is a statement that takes the lock of all writers, where there is one and a
	// transaction can be without it.
	WriteLock string
	// Check is a statement that has the database run the checks of the commit early. In the commit,
	// a check could wait for others that wait for a lane's lock. "": the database checks nothing
	// there.
	Check string
	// JoinCondition holds in transactions that a settlement can be a part of; "": in all. JoinHint
	// says what to do where the condition does not hold.
	JoinCondition, JoinHint string
	// Isolation must let each statement see all that was committed before it.
	Isolation sql.IsolationLevel
	// Log returns the table that holds a topic's messages, and the condition that selects them
	// there.
	Log func(topic int64) (table, where string)
	// CreateTopic prepares the table of a new topic's messages. nil: there is nothing to do.
	CreateTopic func(ctx context.Context, tx *sql.Tx, topic int64) error
	// TableExists asks whether the table meta exists.
	TableExists string
	// Lock and Unlock guard migrations, on one connection. Either may be "".
	Lock, Unlock string
	// Migrations are the statements that lead from each version to the next.
	Migrations [][]string
	// Durable: commits outlive the process.
	Durable bool
	// MaxMessage is the size of the largest message, if there is a limit.
	MaxMessage int
	// Writers is how many batches may be under way at once; the second and further ones start only
	// if SpillRows messages wait.
	Writers, SpillRows int
	// BatchRows and BatchBytes bound a batch.
	BatchRows, BatchBytes int
}

// LogSQL returns a statement on one topic's messages: {log} is their table, {of} the condition that
// selects them.
func (d *Dialect) LogSQL(topic int64, template string) string {
	table, where := d.Log(topic)
	return d.Compile(strings.NewReplacer("{log}", table, "{of}", where).Replace(template))
}
