package parking

import "github.com/millrace-go/millrace/bus"

// State says how far the parking of a message is.
type State int8

const (
	// Unknown: no message has the position, or it is gone.
	Unknown State = iota
	// Writing: the position was given out, and no record of the message is known yet.
	Writing
	// Stored: the version of its newest record is known.
	Stored
	// Lost: it was stored, and the driver must find its record again.
	Lost
	// Settled: it is done with, and the driver must still remove its record.
	Settled
)

// Index is the knowledge of a lane's owner about the messages parked in the lane. For each position
// it has the [State] and the version of the newest record. Versions grow with each record; offsets
// do. The zero value is empty.
//
//	state                  event                            next
//	Unknown                Reserve, Apply (new)             Writing
//	Unknown                Adopt                            Stored
//	Unknown                Stored: settled while written    Settled
//	Writing, Lost          Stored, Adopt                    Stored
//	Lost                   Found                            Stored
//	Stored                 Lose                             Lost
//	Lost                   Prune                            Unknown
//	Writing, Stored, Lost  Settle                           Settled
//	Writing, Stored, Lost  Apply (withdraw)                 Unknown
//	Settled                Reserve                          Writing
//	all                    Forget                           Unknown
type Index struct {
	Clock
	places   map[int64]place
	reserved map[int64]reservation // by position at the origin
}

// place holds the state of a position, and the version of its newest record.
type place struct {
	state   State
	version int64 // of states Stored and later
}

// reservation is the place for a message that is about to be parked. It outlives a failed try. The
// next try writes to the same place, so it replaces a record that the first try may have left
// without anybody's knowledge. Followers that are parked meanwhile stay behind it.
type reservation struct {
	position int64
	doubtful bool // a record may be there
}

// At returns the state of a position, and the version of its newest record if one is known.
func (x *Index) At(position int64) (State, int64) {
	p := x.places[position]
	return p.state, p.version
}

// Known reports whether a message has the position and is not settled.
func (x *Index) Known(position int64) bool {
	s := x.places[position].state
	return s != Unknown && s != Settled
}

// Reserve returns the position at which a message is about to be parked. A message that is parked
// already keeps its position. Any other message gets the same position at each try.
func (x *Index) Reserve(t bus.Token) int64 {
	position := t.Position
	if !t.Parked {
		r, again := x.reserved[t.Position]
		if !again {
			r.position = x.Next()
			if x.reserved == nil {
				x.reserved = map[int64]reservation{}
			}
			x.reserved[t.Position] = r
		}
		position = r.position
	}
	if !x.Known(position) {
		x.set(position, place{state: Writing})
	}
	return position
}

// Stored notes a record that this owner has written. Left says that the message was settled while
// it was written: then the driver removes the record.
func (x *Index) Stored(position, version int64) (left bool) {
	switch {
	case x.Known(position):
		x.newest(position, version)
		return false
	case x.places[position].state == Settled:
		return false // the driver removes it anyway
	default:
		x.set(position, place{Settled, version})
		return true
	}
}

// Moved notes that a message was settled at its origin, because it is parked.
func (x *Index) Moved(t bus.Token) {
	if !t.Parked {
		delete(x.reserved, t.Position)
	}
}

// Doubt notes that parking a message has failed, and that a record of it may have been stored.
func (x *Index) Doubt(t bus.Token) {
	if r, ok := x.reserved[t.Position]; ok && !t.Parked {
		r.doubtful = true
		x.reserved[t.Position] = r
	}
}

// Settle ends a parked message, or a message that is done with at its origin and will not be
// parked. Left says that a record is, or may be, left at the position: the driver removes it, and
// then calls [Index.Forget].
func (x *Index) Settle(t bus.Token) (position int64, left bool) {
	position = t.Position
	if !t.Parked {
		r, ok := x.reserved[t.Position]
		if !ok {
			return 0, false
		}
		delete(x.reserved, t.Position)
		if !r.doubtful {
			x.Forget(r.position)
			return 0, false
		}
		position = r.position
	}
	if !x.Known(position) {
		return 0, false
	}
	x.set(position, place{Settled, x.places[position].version})
	return position, true
}

// Forget notes that no record is left at a position.
func (x *Index) Forget(position int64) { delete(x.places, position) }

// Found notes a record that was read at the broker. It returns false if the record's message is not
// known: see [Index.Adopt].
func (x *Index) Found(position, version int64) bool {
	if s := x.places[position].state; s == Stored || s == Lost {
		x.newest(position, version)
	}
	return x.Known(position)
}

// Adopt takes over a message that another owner has parked: an earlier owner that wrote late, or an
// owner that nobody knows yet. To remove its record could lose the message; to adopt it can only
// repeat it. Adopt returns false for a settled message.
func (x *Index) Adopt(position, version int64) bool {
	if x.places[position].state == Settled {
		return false
	}
	x.newest(position, version)
	return true
}

// Apply carries out a command as far as the index goes, and returns the position of its message.
// Same says that the command means the message that is parked there. Ok is false if the command
// means another message, or its message is parked no more.
func (x *Index) Apply(c Command, same bool) (position int64, ok bool) {
	if c.Kind == New {
		position = x.Next()
		x.set(position, place{state: Writing})
		return position, true
	}
	if ok = same && x.Known(c.Position); ok && c.Kind == Withdraw {
		x.Forget(c.Position)
	}
	return c.Position, ok
}

// Lose notes that no record is at its old place: the broker's log is another one. Then records are
// found again, or pruned.
func (x *Index) Lose() {
	for position, p := range x.places {
		if p.state == Stored {
			x.places[position] = place{state: Lost}
		}
	}
}

// Prune forgets messages that were not found again after [Index.Lose].
func (x *Index) Prune() {
	for position, p := range x.places {
		if p.state == Lost {
			delete(x.places, position)
		}
	}
}

// newest notes a record, unless a newer one is known.
func (x *Index) newest(position, version int64) {
	if p := x.places[position]; p.state != Stored || p.version < version {
		x.set(position, place{Stored, version})
	}
}

func (x *Index) set(position int64, p place) {
	if x.places == nil {
		x.places = map[int64]place{}
	}
	x.places[position] = p
}
