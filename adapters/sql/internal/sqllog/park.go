package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/stored"
)

var errBusyLane = errors.New("the lane's row is locked by another transaction")

// parkings is one call of Park.
type parkings struct {
	source *Source
	ps     []driver.Parking
	docs   []string
	errs   []error // by delivery
	lanes  []parkedLane
}

// Park implements driver.ParkingSource.
func (s *Source) Park(ctx context.Context, ps []driver.Parking) error {
	p := &parkings{source: s, ps: ps, docs: make([]string, len(ps)), errs: make([]error, len(ps))}
	all := make([]int, 0, len(ps))
	for i := range ps {
		if p.docs[i], p.errs[i] = encodeParked(&ps[i]); p.errs[i] == nil {
			all = append(all, i)
		}
	}
	if err := p.store(ctx, all); err != nil {
		return err
	}
	for pause := time.Millisecond; pause < busyPatience; pause *= 2 { // most often it is this process's own commit
		busy := p.busy()
		if len(busy) == 0 || !sleep(pause, s.closing, ctx.Done()) {
			break
		}
		for _, i := range busy {
			p.errs[i] = nil
		}
		if err := p.store(ctx, busy); err != nil {
			return err
		}
	}
	return p.outcome()
}

// busyPatience is about how long Park tries to have a lane that is locked.
const busyPatience = 64 * time.Millisecond

// busy returns the places of the parkings whose lane was locked. They are tried again.
func (p *parkings) busy() (places []int) {
	for i, err := range p.errs {
		if errors.Is(err, errBusyLane) {
			places = append(places, i)
		}
	}
	return places
}

// store parks the deliveries at these places of the call. Where the database refuses one of them
// for itself, each is parked by itself.
func (p *parkings) store(ctx context.Context, places []int) error {
	if len(places) == 0 {
		return nil
	}
	s := p.source
	p.lanes = nil
	err := p.transact(ctx, places)
	if err == nil {
		p.parked()
		return nil
	}
	switch fault := s.driver.store.Fault(err); {
	case errors.Is(err, bus.ErrClosed), !fault.OfMessage:
		return s.parkFailure(err)
	case len(places) == 1:
		if fault.TooLarge {
			err = errors.Join(bus.ErrTooLarge, err)
		}
		p.errs[places[0]] = err
		return nil
	}
	for _, i := range places {
		if err := p.store(ctx, []int{i}); err != nil {
			return err
		}
	}
	return nil
}

// parkFailure returns the error of a call that may or may not have parked.
func (s *Source) parkFailure(err error) error {
	failure := s.driver.fail("park", s.topic.name, err)
	if e, ok := errors.AsType[*uncertainCommit](err); ok {
		failure = &bus.Error{Op: "park", Broker: s.driver.dialect.Name, Topic: s.topic.name, Err: e.error, Retryable: true}
	}
	return failure
}

// outcome returns the result of Park.
func (p *parkings) outcome() error {
	s := p.source
	stale, failed := 0, false
	for i, err := range p.errs {
		switch {
		case errors.Is(err, bus.ErrStale):
			stale++
		case err != nil:
			failed = true
			p.errs[i] = &bus.Error{Op: "park", Broker: s.driver.dialect.Name, Topic: s.topic.name, Err: err, Definite: true, Retryable: errors.Is(err, errBusyLane)}
		}
	}
	switch {
	case failed:
		return &bus.PublishError{Errs: p.errs}
	case stale > 0:
		return s.driver.fail("park", s.topic.name, fmt.Errorf("%d of %d: %w", stale, len(p.ps), bus.ErrStale))
	}
	return nil
}

func (p *parkings) transact(ctx context.Context, places []int) error {
	s := p.source
	if s.transactional {
		return p.exactly(ctx, places)
	}
	err := s.driver.transact(ctx, s.driver.store.DB(), func(tx *sql.Tx) error { return p.park(ctx, tx, places) })
	if err != nil {
		p.doubt()
	}
	return err
}

// exactly parks in the transaction that settles the messages at their origin, so that a crash in
// between cannot make two of one. Those that cannot be settled there are stale. A transaction that
// has settled a message and cannot store it is not committed: the message would be lost.
func (p *parkings) exactly(ctx context.Context, places []int) error {
	s := p.source
	for {
		places = slices.DeleteFunc(slices.Clone(places), func(i int) bool { return p.errs[i] != nil })
		var origins []bus.Token
		var from []int
		for _, i := range places {
			if !p.ps[i].Token.Parked {
				origins, from = append(origins, p.ps[i].Token), append(from, i)
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
			if err := p.park(ctx, tx, places); err != nil {
				return st, err
			}
			if slices.ContainsFunc(from, func(i int) bool { return p.errs[i] != nil }) {
				return st, errNotStored
			}
			return st, nil
		})
		each, byToken := errors.AsType[*bus.BatchError](err)
		if !byToken && !errors.Is(err, bus.ErrStale) { // the next try shows which one is stale
			return err
		}
		if byToken {
			for k, i := range from {
				p.errs[i] = each.Errs[k]
			}
		}
	}
}

// errNotStored ends a transaction whose lane went while it was under way.
var errNotStored = fmt.Errorf("%w: the lane was lost while its messages were being parked", bus.ErrStale)

// park stores the messages of all lanes that are held. The lanes' rows are locked in the order of
// their shards, as by everybody.
func (p *parkings) park(ctx context.Context, tx *sql.Tx, places []int) error {
	s := p.source
	p.lanes = nil
	s.mu.Lock()
	if s.closed != nil {
		s.mu.Unlock()
		return bus.ErrClosed
	}
	byLane := map[int32]*parkedLane{}
	for _, i := range places {
		t := &p.ps[i].Token
		l := s.owned(t.Lane, t.Epoch)
		if l == nil {
			p.errs[i] = bus.ErrStale
			continue
		}
		if byLane[t.Lane] == nil {
			byLane[t.Lane] = &parkedLane{lane: l, heard: l.heard, doubtful: maps.Clone(l.doubtful)}
		}
		byLane[t.Lane].entries = append(byLane[t.Lane].entries, i)
	}
	member := s.member.id
	s.mu.Unlock()
	for _, shard := range slices.Sorted(maps.Keys(byLane)) {
		l := byLane[shard]
		err := p.parkLane(ctx, tx, member, l)
		if errors.Is(err, bus.ErrStale) || errors.Is(err, errBusyLane) {
			for _, i := range l.entries {
				p.errs[i] = err
			}
			continue
		}
		if err != nil {
			return err
		}
		p.lanes = append(p.lanes, *l)
	}
	return nil
}

// parkedLane is the part of one lane that one transaction parks.
type parkedLane struct {
	lane     *lane
	heard    int64
	doubtful map[int64]int64
	entries  []int // of the call
	rows     []parkedRow
	last     int64 // of the numbers that were drawn, as many as there are rows
}

// parkLane stores the messages of one lane, if it is still this member's.
func (p *parkings) parkLane(ctx context.Context, tx *sql.Tx, member string, l *parkedLane) error {
	s := p.source
	d := s.driver
	shard := l.lane.id.ID
	const lane = "SELECT 1 FROM {lane} WHERE grp = ? AND shard = ? AND owner = ? AND epoch = ?"
	mine, err := exists(ctx, tx, d.dialect.SQL(lane+d.dialect.SkipLocked), s.group, shard, member, l.lane.id.Epoch)
	if err != nil {
		return err
	}
	if !mine { // or somebody has locked it: other lanes must not wait for the lock
		if mine, err = exists(ctx, tx, d.dialect.SQL(lane), s.group, shard, member, l.lane.id.Epoch); err != nil {
			return err
		}
		if mine {
			return errBusyLane
		}
		return bus.ErrStale
	}
	if l.last, err = d.draw(ctx, tx, s.group, shard, len(l.entries)); err != nil {
		return err
	}
	there, err := p.there(ctx, tx, l)
	if err != nil {
		return err
	}
	store := make([]parkedRow, 0, len(l.entries))
	for k, i := range l.entries {
		e := &p.ps[i]
		row := parkedRow{shard: shard, pos: l.last - int64(len(l.entries)-1-k), due: stored.Micros(e.Due), key: []byte(e.Key), doc: p.docs[i]}
		if e.Delayed {
			row.free = 1
		}
		kept := false
		if e.Token.Parked {
			row.pos, row.replaces = e.Position, true
			kept = there[row.pos].change > l.heard // from outside, and the router is about to hear of it
		} else if before, ok := l.doubtful[e.Position]; ok && there[before].id == e.ID && there[before].change == 0 {
			row.pos, row.replaces = before, true // a call without an answer has parked it
		}
		l.rows = append(l.rows, row)
		if !kept {
			store = append(store, row)
		}
	}
	return d.insertParked(ctx, tx, s.group, store)
}

// thereRow is a row that was there before.
type thereRow struct {
	change int64
	id     string // of the message
}

// there looks at the places where rows of earlier attempts may be.
func (p *parkings) there(ctx context.Context, tx *sql.Tx, l *parkedLane) (map[int64]thereRow, error) {
	s := p.source
	args := []any{s.group, l.lane.id.ID}
	for _, i := range l.entries {
		t := &p.ps[i].Token
		if before, ok := l.doubtful[t.Position]; t.Parked {
			args = append(args, t.Position)
		} else if ok {
			args = append(args, before)
		}
	}
	there := map[int64]thereRow{}
	if len(args) == 2 {
		return there, nil
	}
	withDoc := "NULL"
	if len(l.doubtful) > 0 {
		withDoc = "doc"
	}
	err := collect(ctx, tx, func(rows *sql.Rows) error {
		var pos int64
		var r thereRow
		var doc []byte
		if err := rows.Scan(&pos, &r.change, &doc); err != nil {
			return err
		}
		r.id = parkedID(doc)
		there[pos] = r
		return nil
	}, s.driver.dialect.Compile("SELECT pos, chg, "+withDoc+" FROM {parked} WHERE grp = ? AND shard = ? AND pos IN ("+marks(len(args)-2)+")"), args...)
	return there, err
}

// doubt remembers the positions at which a transaction with an unknown outcome may have parked
// messages. So parking them again does not make two of one.
func (p *parkings) doubt() {
	s := p.source
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range p.lanes {
		if l.lane.doubtful == nil {
			l.lane.doubtful = map[int64]int64{}
		}
		for k, row := range l.rows {
			if t := &p.ps[l.entries[k]].Token; !t.Parked {
				l.lane.doubtful[t.Position] = row.pos
			}
		}
	}
}

// parked marks the parked messages as settled at their origin.
func (p *parkings) parked() {
	s := p.source
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, pl := range p.lanes {
		l := pl.lane
		if !l.gone && l.heard == pl.last-int64(len(pl.rows)) {
			l.heard = pl.last // nobody else has changed anything
		}
		for k := range pl.rows {
			t := &p.ps[pl.entries[k]].Token
			if !t.Parked {
				delete(l.doubtful, t.Position)
				if l.window.Done(t.Position) {
					signal(s.dirty)
				}
			}
			t.Parked, t.Position = true, pl.rows[k].pos
		}
	}
}
