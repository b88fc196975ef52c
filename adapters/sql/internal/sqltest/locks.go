package sqltest

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// StandsStill has a process stand still in a transaction that holds rows of the bus, as if paused
// or vanished with its host. It stops nobody else.
func StandsStill(t *testing.T, db Database) {
	for name, test := range map[string]func(*testing.T, Database){
		"lane":       lockedLane,
		"group":      lockedGroup,
		"otherGroup": lockedOtherGroup,
		"members":    lockedMembers,
		"parking":    lockedParking,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, db)
		})
	}
}

// lock begins a transaction that locks the rows of a table, and returns a function that ends it.
func (db Database) lock(t *testing.T, rows string) (end func()) {
	t.Helper()
	tx, err := db.DB.BeginTx(t.Context(), &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback() }) // it may have ended
	var one int
	if err := tx.QueryRowContext(t.Context(), "SELECT 1 FROM "+db.Prefix+rows+" FOR UPDATE").Scan(&one); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
}

// Keeps checks that a member keeps all lanes but n for as long as three leases.
func Keeps(t *testing.T, o *Observer, lease time.Duration, but int) {
	t.Helper()
	t.Helper()
	for end := time.After(3 * lease); ; {
		select {
		case e := <-o.Events:
			if o.Count() < lanes-but {
				t.Fatalf("%d lanes are left after: %s", o.Count(), e)
			}
		case <-end:
			return
		}
	}
}

// lockedLane: a lane of an owner that is dead is locked. The live member has all others meanwhile,
// and this one after it.
func lockedLane(t *testing.T, db Database) {
	topic, o := Topic(), NewObserver()
	b := db.Open(t, "lease=600ms")
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	o.Await(t, lanes)
	group := db.groupID(t, topic)
	db.exec(t, fmt.Sprintf("UPDATE %slane SET owner = 'dead', epoch = epoch + 1 WHERE grp = %d AND shard = 3", db.Prefix, group))
	end := db.lock(t, fmt.Sprintf("lane WHERE grp = %d AND shard = 3", group))
	o.Await(t, lanes-1)
	Keeps(t, o, 600*time.Millisecond, 1)
	end()
	o.Await(t, lanes)
	Close(t, s)
}

// lockedGroup: somebody stands still while it takes lanes.
func lockedGroup(t *testing.T, db Database) {
	topic, o := Topic(), NewObserver()
	b := db.Open(t, "lease=600ms")
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	o.Await(t, lanes)
	group := db.groupID(t, topic)
	end := db.lock(t, fmt.Sprintf("grp WHERE id = %d", group))
	db.exec(t, fmt.Sprintf("UPDATE %slane SET owner = 'dead', epoch = epoch + 1 WHERE grp = %d AND shard = 3", db.Prefix, group))
	o.Await(t, lanes-1)
	Keeps(t, o, 600*time.Millisecond, 1)
	end()
	o.Await(t, lanes)
	Close(t, s)
}

// lockedMembers: the row of a member whose lease has ended is locked, and its lanes are taken.
func lockedMembers(t *testing.T, db Database) {
	topic, o := Topic(), NewObserver()
	b := db.Open(t, "lease=600ms")
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	o.Await(t, lanes)
	group := db.groupID(t, topic)
	db.exec(t, fmt.Sprintf("INSERT INTO %smember (id, grp, expires) VALUES ('%s', %d, 1)", db.Prefix, bus.NewID(), group))
	end := db.lock(t, fmt.Sprintf("member WHERE grp = %d AND expires = 1", group))
	db.exec(t, fmt.Sprintf("UPDATE %slane SET owner = 'dead', epoch = epoch + 1 WHERE grp = %d AND shard = 3", db.Prefix, group))
	for lost := false; !lost; {
		e := <-o.Events
		lost = strings.HasPrefix(e, "lost")
	}
	o.Await(t, lanes)
	end()
	Close(t, s)
}

// lockedOtherGroup: rows that another group has locked do not hold up a commit.
func lockedOtherGroup(t *testing.T, db Database) {
	topic, o := Topic(), NewObserver()
	b := db.Open(t)
	Close(t, Subscribe(t, b, topic, "g", bus.Earliest, NewObserver()))
	s := Subscribe(t, b, topic, "h", bus.Earliest, o)
	o.Await(t, lanes)
	Publish(t, b, topic, Texts(numbers(40)...)...)
	ds := Receive(t, s, 40)
	end := db.lock(t, fmt.Sprintf("lane WHERE grp = %d AND shard = 3", db.groupID(t, topic)))
	Settle(t, s, ds...)
	committed := make(chan error, 1)
	go func() { committed <- s.(driver.Committer).Commit(bounded(t)) }()
	select {
	case err := <-committed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience / 6):
		t.Error("a commit waits for the lock of another group")
	}
	end()
	Close(t, s)
}
