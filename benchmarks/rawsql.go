package main

import (
	"context"
	stdsql "database/sql"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	_ "modernc.org/sqlite"
)

// sqlSide is database/sql on a table with the columns of ours, numbered by the database. A call is
// one insert of as many rows, prepared; reading is by a cursor on the number, page by page, with
// the position stored after each. Numbers are given at the insert and seen at the commit, so the
// cursor stops before one that is missing: its transaction is still open. (Nothing rolls back here,
// and a call's numbers are given together.)
type sqlSide struct {
	write, read *stdsql.DB
	table       string
	lanes       int

	mu      sync.Mutex
	inserts map[int]*stdsql.Stmt // by the number of rows
}

func rawMySQL(ctx context.Context, p *place) (side, error) {
	db, err := p.mysqlDB()
	if err != nil {
		return nil, err
	}
	return openSQL(ctx, &sqlSide{write: db, read: db, table: p.topic + "_raw", lanes: p.lanes}, `(seq BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,
	shard SMALLINT NOT NULL, created BIGINT NOT NULL, time BIGINT NOT NULL, id VARCHAR(255) NOT NULL, msg_key VARBINARY(255) NOT NULL,
	type VARCHAR(255) NOT NULL, source VARCHAR(255) NOT NULL, subject VARCHAR(255) NOT NULL, content_type VARCHAR(255) NOT NULL,
	headers LONGTEXT NULL, payload LONGBLOB NULL) ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin`)
}

// rawSQLite has WAL and synchronous=full, as ours.
func rawSQLite(ctx context.Context, p *place) (side, error) {
	open := func(size int, pragmas ...string) (*stdsql.DB, error) {
		q := url.Values{"_txlock": {"immediate"}, "_busy_timeout": {"5000"}, "_pragma": pragmas}
		db, err := stdsql.Open("sqlite", "file:"+p.url+"?"+q.Encode())
		if err == nil {
			db.SetMaxOpenConns(size)
			db.SetMaxIdleConns(size)
		}
		return db, err
	}
	write, err := open(1, "synchronous(full)", "journal_mode(WAL)")
	if err != nil {
		return nil, err
	}
	read, err := open(1)
	if err != nil {
		return nil, errors.Join(err, write.Close())
	}
	return openSQL(ctx, &sqlSide{write: write, read: read, table: "raw", lanes: p.lanes}, `(seq INTEGER PRIMARY KEY,
	shard INTEGER NOT NULL, created INTEGER NOT NULL, time INTEGER NOT NULL, id TEXT NOT NULL, msg_key BLOB NOT NULL, type TEXT NOT NULL,
	source TEXT NOT NULL, subject TEXT NOT NULL, content_type TEXT NOT NULL, headers TEXT, payload BLOB)`)
}

func openSQL(ctx context.Context, s *sqlSide, columns string) (side, error) {
	s.inserts = map[int]*stdsql.Stmt{}
	for _, query := range []string{
		"CREATE TABLE " + s.table + " " + columns,
		"CREATE TABLE " + s.table + "_pos (id INTEGER PRIMARY KEY, pos BIGINT NOT NULL)",
		"INSERT INTO " + s.table + "_pos VALUES (1, 0)",
	} {
		if _, err := s.write.ExecContext(ctx, query); err != nil {
			return nil, errors.Join(err, s.close())
		}
	}
	return s, nil
}

func (s *sqlSide) insert(rows int) (*stdsql.Stmt, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inserts[rows] == nil {
		stmt, err := s.write.Prepare("INSERT INTO " + s.table + " (shard, created, time, id, msg_key, type, source, subject, content_type, payload) VALUES " +
			strings.Repeat("(?, ?, ?, ?, ?, ?, ?, ?, ?, ?), ", rows-1) + "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")
		if err != nil {
			return nil, err
		}
		s.inserts[rows] = stmt
	}
	return s.inserts[rows], nil
}

// publish does without the context in its statements: watching it costs SQLite's library a
// goroutine a statement.
func (s *sqlSide) publish(_ context.Context, l load) error {
	return l.send(func(items []item) error {
		insert, err := s.insert(len(items))
		if err != nil {
			return err
		}
		args := make([]any, 0, 10*len(items))
		now := time.Now()
		for _, it := range items {
			args = append(args, rawShard(it.key, s.lanes), now.UnixMicro(), now.UnixNano(), rawID, []byte(it.key), "", rawSource, "", "", it.payload)
		}
		_, err = insert.Exec(args...)
		return err
	})
}

func (s *sqlSide) consume(ctx context.Context, work time.Duration, l *ledger) error {
	page, err := s.read.Prepare("SELECT seq, shard, time, id, msg_key, type, source, subject, content_type, headers, payload FROM " + s.table + " WHERE seq > ? ORDER BY seq LIMIT ?")
	if err != nil {
		return err
	}
	defer page.Close()
	store, err := s.write.Prepare("UPDATE " + s.table + "_pos SET pos = ? WHERE id = 1")
	if err != nil {
		return err
	}
	defer store.Close()
	for pos := int64(0); ctx.Err() == nil; {
		n, err := s.page(page, &pos, work, l)
		if err != nil {
			return err
		}
		if n == 0 {
			time.Sleep(lookAgain)
			continue
		}
		if _, err := store.Exec(pos); err != nil {
			return err
		}
	}
	return nil
}

func (s *sqlSide) page(page *stdsql.Stmt, pos *int64, work time.Duration, l *ledger) (n int, err error) {
	rows, err := page.Query(*pos, pageRows)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	var shard int
	var seq, at int64
	var id, kind, source, subject, contentType string
	var headers stdsql.NullString
	var key, payload stdsql.RawBytes
	for ; rows.Next(); n++ {
		if err := rows.Scan(&seq, &shard, &at, &id, &key, &kind, &source, &subject, &contentType, &headers, &payload); err != nil {
			return n, err
		}
		if seq != *pos+1 {
			break
		}
		*pos = seq
		pass(work)
		l.note(payload)
	}
	return n, rows.Err()
}

func (s *sqlSide) close() error {
	for _, stmt := range s.inserts {
		stmt.Close()
	}
	err := s.write.Close()
	if s.read != s.write {
		err = errors.Join(err, s.read.Close())
	}
	return err
}
