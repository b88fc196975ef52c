package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Store is a dialect: the operations that have to be fast or differ from one database to another.
type Store interface {
	EventStore
	// Dialect returns the texts of the statements that the engine runs itself.
	Dialect() *Dialect
	// DB runs the engine's own statements, all of them rare.
	DB() *sql.DB
	// KeeperDB runs those that keep leases. They must not wait for connections that handlers hold.
	KeeperDB() *sql.DB
	// Append inserts records in their order, all or nothing. An error with an unknown outcome is an
	// [Uncertain].
	Append(ctx context.Context, batch []Record) error
	// Reader returns a reader of one topic.
	Reader(topic int64) Reader
	// Commit stores the progress of lanes where group, member and epoch match, the position does
	// not go back and the database has the progress's basis. It returns how many rows it changed,
	// or any smaller number if the driver does not know.
	Commit(ctx context.Context, group int64, member string, lanes []Progress) (int, error)
	// Settle is Commit of one lane within the transaction x, which may be of another client library
	// and has the row's lock afterwards. It returns whether it has written, and may set p.Place for
	// the next call after x has committed.
	Settle(ctx context.Context, x driver.Execer, group int64, member string, p *Progress) (mine bool, err error)
	// AppendIn is Append within the transaction x, of one batch by topic: from here on until its
	// end it may hold up writers and readers of the topics.
	AppendIn(ctx context.Context, x driver.Execer, batch []Record) error
	// Head returns a position of the topic up to which all messages are visible, and which all that
	// are published from now on exceed.
	Head(ctx context.Context, topic int64) (int64, error)
	// Last returns the last position of the topic that was given out, or a later one that no
	// message has. It waits for nobody.
	Last(ctx context.Context, db *sql.DB, topic int64) (int64, error)
	// Fault judges an error.
	Fault(err error) Fault
	// As finds a native client.
	As(target any) bool
	// Close closes the resources that the store opened itself.
	Close() error
}

// Notifier is a store whose database can tell other processes.
type Notifier interface {
	// Notify sends the texts.
	Notify(ctx context.Context, texts []string) error
	// Listen calls ready once it listens, then heard for each text, until ctx or the connection
	// ends.
	Listen(ctx context.Context, ready func(), heard func(text string)) error
}

// Sweeper is a store whose log is not in the order of shards, so it deletes old messages in a way
// of its own.
type Sweeper interface {
	// Sweep deletes messages that are older than age and below the limit of their shard, until
	// closing is closed.
	Sweep(ctx context.Context, topic int64, limits []int64, age time.Duration, closing <-chan struct{}) error
}

// Record is one message in the log.
type Record struct {
	Topic   int64
	Shard   int32
	Seq     int64 // given by the database
	Version int64 // of an event in its stream; 0: it is none
	Message *bus.Message
}

// Reader reads on in one topic. It is used by one goroutine.
type Reader interface {
	// Read appends the records after the cursors to q.Records and moves the cursors. After an error
	// neither counts. It fails with ErrNoWitness rather than add records written after the witness
	// had gone.
	Read(ctx context.Context, q *Query) (More, error)
}

// Query is one read.
type Query struct {
	Cursors []Cursor
	// Witness must be there if the records are. ID "" is nobody.
	Witness Witness
	// Even gives each cursor the same share of Limit, so that More is Ready unless all cursors were
	// read to their end.
	Even bool
	// Limit bounds the records, Bytes their [bus.Message.Size]: reading stops with the record that
	// reaches it.
	Limit, Bytes int
	Records      []Record
}

// Witness is a message that was read before. If it has gone, so may others have, and their numbers
// are given out again.
type Witness struct {
	Shard int32
	Seq   int64
	ID    string
}

// ErrNoWitness is the error of Read if the witness is not there.
var ErrNoWitness = errors.New("a message that was read before no longer exists")

// Cursor is the first position of a shard that has not been read.
type Cursor struct {
	Shard int32
	From  int64
}

// More says what to expect after a read.
type More int8

const (
	// Drained: nothing is left.
	Drained More = iota
	// Held: there is something that is not safe to read yet, and will be soon.
	Held
	// Ready: there is more.
	Ready
)

// Progress is the committed state of a lane.
type Progress struct {
	Shard    int32
	Epoch    uint64
	Position int64
	Window   []byte
	// Place is the store's note of where it has found the lane's row, and a hint only. "": none.
	Place string
	// Basis is the state that the database must still have.
	Basis Basis
}

// Basis is a member's knowledge of a lane from the database. A database without it is an older
// state of itself: a replica that was promoted, or a backup. Positions that it gives out from now
// on may be below those that the member has read. So nothing that builds on the basis may be
// written there.
type Basis struct {
	Topic int64
	// Stored is the position that was committed.
	Stored int64
	// Top is the newest message that was read, and ID its id; 0 if it may have been deleted,
	// because the group has finished it.
	Top int64
	ID  string
	// Changes is the number of the last change to the parked messages.
	Changes int64
}

// Fault is the meaning of an error.
type Fault struct {
	// Retryable: the same may succeed later.
	Retryable bool
	// Denied: the server refuses the user, or something that the statement needs is missing. It may
	// come back, as after a rotation of passwords, but the caller is told at once.
	Denied bool
	// Disconnected: the connection ended, or there was none.
	Disconnected bool
	// OfMessage: one of the messages is to blame, and the others could be stored without it.
	OfMessage bool
	// TooLarge: a limit of the database on the size of a message.
	TooLarge bool
}

// Uncertain is an error that may or may not have prevented the operation: nobody knows which.
type Uncertain struct{ Err error } //nolint:errname // it says what the outcome is

func (e *Uncertain) Error() string { return e.Err.Error() }

// Unwrap returns the client library's error.
func (e *Uncertain) Unwrap() error { return e.Err }
