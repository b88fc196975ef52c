package sqllog

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// Parked messages are rows of a table, with the message in a JSON document. The row with position 0 is the lane's
// counter: it gives out positions, and numbers the changes that are made from outside, by which the owner finds them.
// What the owner itself parks has change 0. A row without a document was withdrawn, and is deleted when the owner has
// heard of it.

// parkedDocument is a parked message as it is stored.
type parkedDocument struct {
	Handler   string       `json:"handler,omitempty"`
	Attempt   int          `json:"attempt"`
	FirstSeen time.Time    `json:"firstseen"`
	Failure   *bus.Failure `json:"failure,omitempty"`
	Message   *original    `json:"message"`
}

func encodeParked(p *bus.Parking) (string, error) {
	doc, err := json.Marshal(parkedDocument{
		Handler: p.Handler, Attempt: p.Attempt, FirstSeen: p.FirstSeen, Failure: p.Failure, Message: originalOf(p.Message),
	})
	return string(doc), err
}

func decodeParked(doc []byte, topic string, t bus.Token) (bus.Delivery, error) {
	var d parkedDocument
	if err := json.Unmarshal(doc, &d); err != nil {
		return bus.Delivery{}, err
	}
	return bus.Delivery{
		Message: d.Message.message(), Token: t, Topic: topic,
		Handler: d.Handler, Attempt: d.Attempt, FirstSeen: d.FirstSeen, Failure: d.Failure,
	}, nil
}

// micros is a due time as it is stored: microseconds since 1970, rounded up; 0 is any time.
func micros(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Add(time.Microsecond - 1).UnixMicro()
}

func dueOf(micros int64) time.Time {
	if micros == 0 {
		return time.Time{}
	}
	return time.UnixMicro(micros)
}

// parkedRow is a row to store.
type parkedRow struct {
	shard  int32
	pos    int64
	change int64
	due    int64
	free   int
	key    []byte
	doc    string
}

const parkedColumns = "(grp, shard, pos, chg, due, free, msg_key, doc)"

const (
	// maxRows bounds the rows and the parameters of one statement.
	maxRows = 100
	// maxDocs bounds its bytes, unless one row has more.
	maxDocs = 1 << 20
)

// insertParked stores rows, each at its position, whatever is there.
func (d *Driver) insertParked(ctx context.Context, tx *sql.Tx, group int64, rows []parkedRow, replaces bool) error {
	for len(rows) > 0 {
		n, bytes := 1, len(rows[0].doc)
		for n < min(len(rows), maxRows) && bytes+len(rows[n].doc) <= maxDocs {
			bytes += len(rows[n].doc)
			n++
		}
		chunk := rows[:n]
		rows = rows[n:]
		if replaces {
			for _, r := range chunk {
				if _, err := tx.ExecContext(ctx, d.dialect.SQL("DELETE FROM {parked} WHERE grp = ? AND shard = ? AND pos = ?"), group, r.shard, r.pos); err != nil {
					return err
				}
			}
		}
		args := make([]any, 0, 8*len(chunk))
		for _, r := range chunk {
			args = append(args, group, r.shard, r.pos, r.change, r.due, r.free, r.key, r.doc)
		}
		values := strings.TrimSuffix(strings.Repeat("(?, ?, ?, ?, ?, ?, ?, ?),", len(chunk)), ",")
		if _, err := tx.ExecContext(ctx, d.dialect.compile("INSERT INTO {parked} "+parkedColumns+" VALUES "+values), args...); err != nil {
			return err
		}
	}
	return nil
}

// draw takes n numbers from a lane's counter, and returns the last. The transaction holds the counter until it ends.
func (d *Driver) draw(ctx context.Context, tx *sql.Tx, group int64, shard int32, n int) (last int64, err error) {
	_, err = tx.ExecContext(ctx, d.dialect.SQL("{insert} {parked} "+parkedColumns+" VALUES (?, ?, 0, 0, 0, 0, ?, NULL) {ignore}"), group, shard, []byte{})
	if err != nil {
		return 0, err
	}
	_, err = tx.ExecContext(ctx, d.dialect.SQL("UPDATE {parked} SET chg = chg + ? WHERE grp = ? AND shard = ? AND pos = 0"), n, group, shard)
	if err != nil {
		return 0, err
	}
	err = tx.QueryRowContext(ctx, d.dialect.SQL("SELECT chg FROM {parked} WHERE grp = ? AND shard = ? AND pos = 0"), group, shard).Scan(&last)
	return last, err
}

// Park implements bus.ParkingSource. The lanes' rows are locked in the order of their shards, as by everybody.
func (s *Source) Park(ctx context.Context, ps []bus.Parking) error {
	docs := make([]string, len(ps))
	for i := range ps {
		var err error
		if docs[i], err = encodeParked(&ps[i]); err != nil {
			return s.driver.fail("park", s.topic.name, err)
		}
	}
	var parked []parkedLane
	park := func(ctx context.Context, tx *sql.Tx, left []bool) (err error) {
		parked, err = s.parkLanes(ctx, tx, ps, docs, left)
		return err
	}
	var err error
	if s.transactional {
		err = s.parkExactly(ctx, ps, park)
	} else {
		err = s.driver.transact(ctx, s.driver.store.DB(), func(tx *sql.Tx) error { return park(ctx, tx, nil) })
	}
	if err != nil {
		return s.driver.fail("park", s.topic.name, err)
	}
	return s.parkedNow(ps, parked)
}

// parkLanes stores the messages of all lanes that are held, but for those that are left out.
func (s *Source) parkLanes(ctx context.Context, tx *sql.Tx, ps []bus.Parking, docs []string, left []bool) (parked []parkedLane, err error) {
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		return nil, bus.ErrClosed
	}
	byLane := map[int32][]int{}
	for i := range ps {
		if (left == nil || !left[i]) && s.owned(ps[i].Lane, ps[i].Epoch) != nil {
			byLane[ps[i].Lane] = append(byLane[ps[i].Lane], i)
		}
	}
	member := s.member.id
	s.mu.Unlock()
	for _, shard := range slices.Sorted(maps.Keys(byLane)) {
		l := parkedLane{shard: shard, epoch: ps[byLane[shard][0]].Epoch, entries: byLane[shard]}
		if err := s.parkLane(ctx, tx, member, &l, ps, docs); err != nil {
			return nil, err
		}
		parked = append(parked, l)
	}
	return parked, nil
}

// parkExactly parks in the transaction that settles the messages at their origin, so that a crash in between cannot make two of
// one. Those that cannot be settled there are left out.
func (s *Source) parkExactly(ctx context.Context, ps []bus.Parking, park func(ctx context.Context, tx *sql.Tx, left []bool) error) error {
	left := make([]bool, len(ps))
	for {
		var origins []bus.Token
		var places []int
		for i := range ps {
			if !left[i] && !ps[i].Token.Parked {
				origins, places = append(origins, ps[i].Token), append(places, i)
			}
		}
		err := s.inTransaction(ctx, func(ctx context.Context, tx *sql.Tx) (*settlement, error) {
			st, err := s.enter(ctx, origins)
			if err != nil {
				return nil, err
			}
			if err := st.write(ctx, tx, origins); err != nil {
				return st, err
			}
			return st, park(ctx, tx, left)
		})
		each, byToken := errors.AsType[*bus.BatchError](err)
		if !byToken && !errors.Is(err, bus.ErrStale) { // whose, is seen the next time
			return err
		}
		for k, i := range places {
			left[i] = byToken && each.Errs[k] != nil
		}
	}
}

// parkedLane is what is parked of one lane by one call.
type parkedLane struct {
	shard   int32
	epoch   uint64
	entries []int // of the call
	rows    []parkedRow
	last    int64 // of the numbers that were drawn, as many as there are rows
}

// parkLane stores the messages of one lane, if it is still this member's.
func (s *Source) parkLane(ctx context.Context, tx *sql.Tx, member string, l *parkedLane, ps []bus.Parking, docs []string) error {
	d := s.driver
	mine, err := exists(ctx, tx, d.dialect.SQL("SELECT 1 FROM {lane} WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ?"+d.dialect.ForUpdate), s.group, l.shard, member, l.epoch)
	if err != nil || !mine {
		return err
	}
	if l.last, err = d.draw(ctx, tx, s.group, l.shard, len(l.entries)); err != nil {
		return err
	}
	replaces := false
	for k, i := range l.entries {
		p := &ps[i]
		row := parkedRow{shard: l.shard, pos: l.last - int64(len(l.entries)-1-k), due: micros(p.Due), key: []byte(p.Key), doc: docs[i]}
		if p.Free {
			row.free = 1
		}
		if p.Token.Parked {
			row.pos, replaces = p.Position, true
		}
		l.rows = append(l.rows, row)
	}
	return d.insertParked(ctx, tx, s.group, l.rows, replaces)
}

// parkedNow marks what has been parked as settled at its origin.
func (s *Source) parkedNow(ps []bus.Parking, parked []parkedLane) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored := 0
	for _, pl := range parked {
		l := s.owned(pl.shard, pl.epoch)
		if l != nil && l.heard == pl.last-int64(len(pl.rows)) {
			l.heard = pl.last // nobody else has changed anything
		}
		for k := range pl.rows {
			t := &ps[pl.entries[k]].Token
			if !t.Parked && l != nil && l.window.Done(t.Position) {
				signal(s.dirty)
			}
			t.Parked, t.Position = true, pl.rows[k].pos
			stored++
		}
	}
	if stored < len(ps) {
		return s.driver.fail("park", s.topic.name, fmt.Errorf("%d of %d: %w", len(ps)-stored, len(ps), bus.ErrStale))
	}
	return nil
}

// Fetch implements bus.ParkingSource.
func (s *Source) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		return 0, s.driver.fail("fetch", s.topic.name, bus.ErrClosed)
	}
	byLane := map[int32][]any{}
	for _, t := range tokens {
		if s.owned(t.Lane, t.Epoch) != nil {
			byLane[t.Lane] = append(byLane[t.Lane], t.Position)
		}
	}
	s.mu.Unlock()
	type place struct {
		shard int32
		pos   int64
	}
	docs := map[place][]byte{}
	for shard, positions := range byLane {
		err := collect(ctx, s.driver.store.DB(), func(rows *sql.Rows) error {
			p := place{shard: shard}
			var doc []byte
			err := rows.Scan(&p.pos, &doc)
			docs[p] = doc
			return err
		}, s.driver.dialect.compile("SELECT pos, doc FROM {parked} WHERE grp = ? AND shard = ? AND doc IS NOT NULL AND pos IN ("+marks(len(positions))+")"),
			append([]any{s.group, shard}, positions...)...)
		if err != nil {
			return 0, s.driver.fail("fetch", s.topic.name, err)
		}
	}
	n := 0
	for _, t := range tokens {
		doc := docs[place{t.Lane, t.Position}]
		if doc == nil || byLane[t.Lane] == nil {
			continue
		}
		var err error
		if dst[n], err = decodeParked(doc, s.topic.name, t); err != nil {
			return 0, s.driver.fail("fetch", s.topic.name, fmt.Errorf("parked message %d of shard %d: %w", t.Position, t.Lane, err))
		}
		n++
	}
	return n, nil
}

// marks are n parameters.
func marks(n int) string { return strings.TrimSuffix(strings.Repeat("?, ", n), ", ") }

// removeParked deletes the rows of parked messages that were settled, in lanes that are still this member's. Lanes that turn out to
// belong to somebody else are lost.
func (s *Source) removeParked(ctx context.Context, member string, lanes []*lane) error {
	for _, l := range lanes {
		for {
			s.mu.Lock()
			settled := slices.Clone(l.unparked[:min(len(l.unparked), maxRows)])
			s.mu.Unlock()
			if len(settled) == 0 {
				break
			}
			args := []any{s.group, l.id.ID}
			for _, pos := range settled {
				args = append(args, pos)
			}
			args = append(args, s.group, l.id.ID, member, l.id.Epoch)
			r, err := s.driver.store.DB().ExecContext(ctx, s.driver.dialect.compile("DELETE FROM {parked} WHERE grp = ? AND shard = ? AND pos IN ("+marks(len(settled))+
				") AND EXISTS (SELECT 1 FROM {lane} WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ?)"), args...)
			if err != nil {
				return err
			}
			if n, err := r.RowsAffected(); err != nil || int(n) < len(settled) { // or they were settled twice
				why, err := s.refused(ctx, member, []Progress{{Shard: l.id.ID, Epoch: l.id.Epoch}})
				if err != nil {
					return err
				}
				if errors.Is(why[l.id.ID], errTaken) {
					s.lose([]*lane{l}, errTaken)
					break
				}
			}
			s.mu.Lock()
			l.unparked = l.unparked[len(settled):]
			s.mu.Unlock()
		}
	}
	return nil
}

// loadLanes reads all that is parked in lanes that were just taken.
func (s *Source) loadLanes(ctx context.Context, lanes []*lane) ([]bus.Parked, error) {
	d := s.driver
	byShard := map[int32]*lane{}
	args := []any{s.group}
	for _, l := range lanes {
		byShard[l.id.ID] = l
		args = append(args, l.id.ID)
	}
	in := " FROM {parked} WHERE grp = ? AND shard IN (" + marks(len(lanes)) + ")"
	found := false
	err := collect(ctx, d.store.KeeperDB(), func(rows *sql.Rows) error {
		var shard int32
		var last int64
		err := rows.Scan(&shard, &last)
		byShard[shard].heard, found = last, true
		return err
	}, d.dialect.compile("SELECT shard, chg"+in+" AND pos = 0"), args...)
	if err != nil || !found {
		return nil, err
	}
	return s.collectParked(ctx, func(shard int32) bus.Lane { return byShard[shard].id }, d.dialect.compile(parkedSelect+in+" AND pos > 0 ORDER BY shard, pos"), args...)
}

const parkedSelect = "SELECT shard, pos, due, free, msg_key, CASE WHEN doc IS NULL THEN 1 ELSE 0 END"

func (s *Source) collectParked(ctx context.Context, of func(shard int32) bus.Lane, query string, args ...any) (ps []bus.Parked, err error) {
	err = collect(ctx, s.driver.store.KeeperDB(), func(rows *sql.Rows) error {
		p := bus.Parked{Token: bus.Token{Parked: true}}
		var due int64
		var key []byte
		if err := rows.Scan(&p.Lane, &p.Position, &due, &p.Free, &key, &p.Withdrawn); err != nil {
			return err
		}
		p.Epoch, p.Due, p.Key = of(p.Lane).Epoch, dueOf(due), string(key)
		ps = append(ps, p)
		return nil
	}, query, args...)
	return ps, err
}

// loadChanges reads what others have parked, changed or withdrawn in a lane after a number. last is the number up to which
// that is.
func (s *Source) loadChanges(ctx context.Context, id bus.Lane, after int64) (ps []bus.Parked, last int64, err error) {
	d := s.driver
	err = d.store.KeeperDB().QueryRowContext(ctx, d.dialect.SQL("SELECT COALESCE(MAX(chg), 0) FROM {parked} WHERE grp = ? AND shard = ? AND pos = 0"), s.group, id.ID).Scan(&last)
	if err != nil || last == 0 {
		return nil, last, err
	}
	ps, err = s.collectParked(ctx, func(int32) bus.Lane { return id },
		d.dialect.SQL(parkedSelect+" FROM {parked} WHERE grp = ? AND shard = ? AND pos > 0 AND chg > ? ORDER BY pos"), s.group, id.ID, after)
	return ps, last, err
}

// forgetWithdrawn deletes the rows of withdrawn messages, of which the owner has heard.
func (s *Source) forgetWithdrawn(ctx context.Context, ps []bus.Parked) error {
	for _, p := range ps {
		if !p.Withdrawn {
			continue
		}
		_, err := s.driver.store.KeeperDB().ExecContext(ctx, s.driver.dialect.SQL("DELETE FROM {parked} WHERE grp = ? AND shard = ? AND pos = ? AND doc IS NULL"), s.group, p.Lane, p.Position)
		if err != nil {
			return err
		}
	}
	return nil
}

// hear tells the router what others have parked, changed or withdrawn in lanes that it owns.
func (s *Source) hear(ctx context.Context, v *view) error {
	o, ok := s.observer.(bus.ParkingObserver)
	if !ok {
		return nil
	}
	for _, row := range v.lanes {
		s.mu.Lock()
		l := s.owned(row.shard, row.epoch)
		var after int64
		if l != nil {
			after = l.heard
		}
		s.mu.Unlock()
		if l == nil || row.changes <= after {
			continue
		}
		ps, last, err := s.loadChanges(ctx, l.id, after)
		if err != nil {
			return err
		}
		s.observerMu.Lock()
		s.mu.Lock()
		still := s.owned(row.shard, row.epoch) == l
		l.heard = max(l.heard, last)
		s.mu.Unlock()
		if still && len(ps) > 0 {
			o.Parked(ps)
		}
		s.observerMu.Unlock()
		if err := s.forgetWithdrawn(ctx, ps); err != nil {
			return err
		}
	}
	return nil
}

// Inject implements bus.Injector.
func (d *Driver) Inject(ctx context.Context, name, group string, ps []bus.Parking) error {
	if !d.enter() {
		return d.fail("inject", name, bus.ErrClosed)
	}
	defer d.calls.Done()
	t, err := d.topics.find(ctx, name)
	if err != nil {
		return d.fail("inject", name, err)
	}
	id, err := d.findGroup(ctx, d.store.DB(), t, group)
	if err != nil {
		return d.fail("inject", name, err)
	}
	byShard := map[int32][]*bus.Parking{}
	for i := range ps {
		p := &ps[i]
		shard := p.Lane
		if !p.Token.Parked {
			shard = d.topics.shard(t, p.Key)
		}
		byShard[shard] = append(byShard[shard], p)
	}
	err = d.persist(ctx, func(ctx context.Context) error {
		return d.transact(ctx, d.store.DB(), func(tx *sql.Tx) error {
			for shard := range int32(t.shards) { // in order, as everybody locks
				if err := d.injectLane(ctx, tx, id, shard, byShard[shard]); err != nil {
					return err
				}
			}
			return nil
		})
	})
	if err != nil {
		return d.fail("inject", name, err)
	}
	d.hub.moved(id)
	d.announcer.moved(id)
	return nil
}

func (d *Driver) injectLane(ctx context.Context, tx *sql.Tx, group int64, shard int32, ps []*bus.Parking) error {
	if len(ps) == 0 {
		return nil
	}
	last, err := d.draw(ctx, tx, group, shard, len(ps))
	if err != nil {
		return err
	}
	var rows []parkedRow
	for k, p := range ps {
		row := parkedRow{shard: shard, pos: last - int64(len(ps)-1-k), due: micros(p.Due)}
		row.change = row.pos
		if p.Free {
			row.free = 1
		}
		if !p.Withdraw {
			row.key = []byte(p.Key)
			if row.doc, err = encodeParked(p); err != nil {
				return err
			}
		}
		if !p.Token.Parked {
			rows = append(rows, row)
			continue
		}
		// One that is not there any more is left out.
		var doc any
		if !p.Withdraw {
			doc = row.doc
		}
		_, err := tx.ExecContext(ctx, d.dialect.SQL("UPDATE {parked} SET chg = ?, due = ?, free = ?, doc = ? WHERE grp = ? AND shard = ? AND pos = ?"),
			row.change, row.due, row.free, doc, group, shard, p.Position)
		if err != nil {
			return err
		}
	}
	return d.insertParked(ctx, tx, group, rows, false)
}
