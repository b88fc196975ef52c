package mysql

import (
	"context"
	"database/sql"
	"strings"
	"sync"

	"github.com/millrace-go/millrace/adapters/sql/internal/sqllog"
	"github.com/millrace-go/millrace/internal/sqlmessage"
)

// inserts are prepared statements that insert messages of one topic. The first row asks for the
// topic's row with a lock, before the table gives out the first number, and the lock stays until
// the commit: so messages become visible in the order of their numbers. One statement that does all
// is a transaction by itself, and takes one round trip.
//
// Statements are prepared, because the server takes longer to read a payload in a text than to
// store it. Each number of rows needs one of its own, so only some are kept.
type inserts struct {
	db                      *sql.DB
	columns, first, further string

	mu     sync.Mutex
	bySize map[int]*insert
	often  []int // sizes that are kept because they came twice in a row; the oldest first
	last   int   // the last size for which there was no statement
}

// insert is one of them. Its fields are guarded by inserts.mu.
type insert struct {
	*sql.Stmt
	users   int
	dropped bool // to be closed by the last user
}

// Sizes that are always kept: all up to smallRows, and its doubles up to mostRows. The server keeps
// some kilobytes a row for each connection.
const (
	smallRows = 16
	mostRows  = 256
	// mostOften bounds the sizes that are kept beside them.
	mostOften = 4
)

func (i *inserts) init(db *sql.DB, d *sqllog.Dialect) {
	i.db = db
	i.columns = d.SQL("INSERT INTO {log} (topic, shard, created, time, id, msg_key, " + sqlmessage.Columns + ") VALUES ")
	const rest = ", ?, {now}, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	i.first = d.SQL("((SELECT id FROM {topic} WHERE id = ? FOR UPDATE)" + rest)
	i.further = d.SQL(", (?" + rest)
	i.bySize = map[int]*insert{}
}

func (i *inserts) text(rows int) string {
	return i.columns + i.first + strings.Repeat(i.further, rows-1)
}

// sizes returns the sizes of the statements that insert n messages: one, if it is small or came
// before.
func (i *inserts) sizes(n int) (sizes []int) {
	for ; n > mostRows; n -= mostRows {
		sizes = append(sizes, mostRows)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if n > smallRows && i.bySize[n] == nil && n != i.last {
		i.last = n
		for size := mostRows; n > smallRows; size /= 2 {
			if n >= size {
				sizes = append(sizes, size)
				n -= size
			}
		}
	}
	if n > 0 {
		sizes = append(sizes, n)
	}
	return sizes
}

// get returns the statement of a size, for the caller to put back.
func (i *inserts) get(ctx context.Context, size int) (*insert, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	found := i.bySize[size]
	if found == nil {
		stmt, err := i.db.PrepareContext(ctx, i.text(size))
		if err != nil {
			return nil, err
		}
		found = &insert{Stmt: stmt}
		i.bySize[size] = found
		if size > smallRows && size&(size-1) != 0 {
			if i.often = append(i.often, size); len(i.often) > mostOften {
				i.drop(i.often[0])
				i.often = i.often[1:]
			}
		}
	}
	found.users++
	return found, nil
}

func (i *inserts) put(one *insert) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if one.users--; one.dropped && one.users == 0 {
		one.Close()
	}
}

func (i *inserts) drop(size int) {
	one := i.bySize[size]
	delete(i.bySize, size)
	if one.dropped = true; one.users == 0 {
		one.Close()
	}
}

func (i *inserts) close() {
	i.mu.Lock()
	defer i.mu.Unlock()
	for size := range i.bySize {
		i.drop(size)
	}
}
