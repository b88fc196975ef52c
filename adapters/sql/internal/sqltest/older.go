package sqltest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// Older has the database come back in an older state while a member lives, as after a failover to a
// replica that was behind: numbers are given out again. Messages published afterwards must be
// handled, whatever the member had read, settled or parked. Nothing else may use the tables
// meanwhile.
func Older(t *testing.T, db Database) {
	for name, test := range map[string]func(*older, *testing.T){
		"idle":        (*older).idle,
		"inFlight":    (*older).inFlight,
		"parked":      (*older).parked,
		"settlements": (*older).settlements,
	} {
		for _, guarantee := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/transactional=%v", name, guarantee), func(t *testing.T) {
				o := &older{db: db, topic: Topic(), transactional: guarantee}
				o.b = db.Open(t, "shards=1", "commit=1ms")
				Publish(t, o.b, o.topic, Texts("first")...)
				o.s = o.subscribe(t)
				Settle(t, o.s, Receive(t, o.s, 1)...)
				if err := o.commit(t); err != nil {
					t.Fatal(err)
				}
				test(o, t)
				Close(t, o.s)
			})
		}
	}
	t.Run("positionAhead", func(t *testing.T) { positionAhead(t, db) })
}

// older is a group of one member and one lane that has finished one message.
type older struct {
	db            Database
	topic         string
	transactional bool
	b             *bus.Bus
	s             bus.Source
	seen          *parkingObserver
}

func (o *older) subscribe(t *testing.T) bus.Source {
	t.Helper()
	o.seen = newParkingObserver()
	s, err := o.b.Driver().Subscribe(bounded(t), bus.Subscription{Topic: o.topic, Group: "g", InFlight: 512, Bytes: 1 << 20, Transactional: o.transactional}, o.seen)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// parkingObserver takes parked messages and looks at none.
type parkingObserver struct {
	*Observer
	seen chan driver.Parked
}

func newParkingObserver() *parkingObserver {
	return &parkingObserver{Observer: NewObserver(), seen: make(chan driver.Parked, 1000)}
}

// Parked implements driver.ParkingObserver.
func (o *parkingObserver) Parked(ps []driver.Parked) {
	for _, p := range ps {
		o.seen <- p
	}
}

func (o *older) commit(t *testing.T) error {
	t.Helper()
	return o.s.(driver.Committer).Commit(bounded(t))
}

// last is the newest message's position, and the lane's as it is stored.
func (o *older) state(t *testing.T) (last, pos int64) {
	t.Helper()
	log, of, id := o.db.logOf(t, o.topic), o.db.ofTopic(t, o.topic), o.db.groupID(t, o.topic)
	return o.db.number(t, "SELECT MAX(seq) FROM "+log+" WHERE "+of), o.db.number(t, fmt.Sprintf("SELECT pos FROM %slane WHERE grp = %d", o.db.Prefix, id))
}

// back takes the database back to a state.
func (o *older) back(t *testing.T, last, pos int64) {
	t.Helper()
	db, log := o.db, o.db.logOf(t, o.topic)
	group := fmt.Sprint(db.groupID(t, o.topic))
	tx, err := db.DB.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	of := db.ofTopic(t, o.topic)
	for _, query := range []string{
		fmt.Sprintf("UPDATE %slane SET pos = %d, win = NULL WHERE grp = %s", db.Prefix, pos, group),
		"DELETE FROM " + db.Prefix + "parked WHERE grp = " + group,
		fmt.Sprintf("DELETE FROM %s WHERE %s AND seq > %d", log, of, last),
	} {
		if _, err := tx.ExecContext(t.Context(), query); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	db.renumber(t, last)
}

// renumber has the next number follow last.
func (db Database) renumber(t testing.TB, last int64) {
	t.Helper()
	switch {
	case strings.HasPrefix(db.URL, "postgres:"):
		db.exec(t, fmt.Sprintf("SELECT setval('%slog_seq', %d)", db.Prefix, last))
	case strings.HasPrefix(db.URL, "mysql:"):
		db.exec(t, fmt.Sprintf("ALTER TABLE %slog AUTO_INCREMENT = %d", db.Prefix, last+1))
	}
}

// publish publishes through another bus, so that the member has no part in it.
func (o *older) publish(t *testing.T, texts []string) {
	t.Helper()
	Publish(t, o.db.Open(t), o.topic, Texts(texts...)...)
}

// expect receives until all of the texts have come, and settles them. The member must tell of the older state before.
func (o *older) expect(t *testing.T, texts []string) {
	t.Helper()
	ctx := bounded(t)
	told := false
	got := map[string]bool{}
	buf := make([]bus.Delivery, 100)
	for len(got) < len(texts) {
		n, err := o.s.Receive(ctx, buf, 1<<20)
		if ctx.Err() != nil {
			t.Fatalf("%d of %d messages came that were published afterwards", len(got), len(texts))
		}
		if err != nil {
			told = told || strings.Contains(err.Error(), "older state")
			continue
		}
		for _, d := range buf[:n] {
			if slices.Contains(texts, string(d.Payload)) {
				got[string(d.Payload)] = true
			}
		}
		if err := o.s.Settle(ctx, tokens(buf[:n])); err != nil && !errors.Is(err, bus.ErrStale) {
			t.Error(err)
		}
	}
	if !told {
		t.Error("the member did not tell of it")
	}
}

// idle: all was finished, and nothing is in flight.
func (o *older) idle(t *testing.T) {
	last, pos := o.state(t)
	Publish(t, o.b, o.topic, Texts(numbers(40)...)...)
	Settle(t, o.s, Receive(t, o.s, 40)...)
	if err := o.commit(t); err != nil {
		t.Fatal(err)
	}
	o.back(t, last, pos)
	o.publish(t, numbers(60))
	o.expect(t, numbers(60))
}

// inFlight: when the member settles the messages it has received, other messages are at their
// positions.
func (o *older) inFlight(t *testing.T) {
	last, pos := o.state(t)
	Publish(t, o.b, o.topic, Texts(numbers(40)...)...)
	ds := Receive(t, o.s, 40)
	o.back(t, last, pos)
	var after []string
	for i := range 60 {
		after = append(after, fmt.Sprint("after ", i))
	}
	o.publish(t, after)
	if err := o.s.Settle(bounded(t), tokens(ds)); err == nil {
		_ = o.commit(t) // it may be refused or find nothing to do, if the member has noticed already
	}
	if _, now := o.state(t); now > last+1 {
		t.Errorf("the position is %d, and of what came after %d nothing was handled", now, last)
	}
	o.expect(t, after)
}

// parked: a message was parked, its place among the parked ones is gone, and its original is there.
func (o *older) parked(t *testing.T) {
	_, pos := o.state(t)
	Publish(t, o.b, o.topic, Texts("a", "b")...)
	last, _ := o.state(t)
	ds := Receive(t, o.s, 2)
	if err := o.s.(driver.ParkingSource).Park(bounded(t), []driver.Parking{{Delivery: ds[0]}}); err != nil {
		t.Fatal(err)
	}
	if err := o.commit(t); err != nil {
		t.Fatal(err)
	}
	o.back(t, last, pos)
	if err := o.s.Settle(bounded(t), tokens(ds[1:])); err == nil {
		_ = o.commit(t)
	}
	if _, now := o.state(t); now != pos {
		t.Errorf("the position is %d, and the parked message is nowhere", now)
	}
	o.expect(t, []string{string(ds[0].Payload)})
}

// settlements: the database has all messages, and has lost that they were settled. With exactly
// once it has lost their outputs, too.
func (o *older) settlements(t *testing.T) {
	_, pos := o.state(t)
	Publish(t, o.b, o.topic, Texts("a", "b")...)
	Settle(t, o.s, Receive(t, o.s, 2)...)
	if err := o.commit(t); err != nil {
		t.Fatal(err)
	}
	last, settled := o.state(t)
	if settled <= pos {
		t.Fatalf("the position is %d, and was %d", settled, pos)
	}
	o.back(t, last, pos)
	o.expect(t, []string{"a", "b"})
}

// positionAhead: the tables were restored without their numbering.
func positionAhead(t *testing.T, db Database) {
	o := &older{db: db, topic: Topic()}
	o.b = db.Open(t, "shards=1")
	Publish(t, o.b, o.topic, Texts(numbers(40)...)...)
	o.s = o.subscribe(t)
	Settle(t, o.s, Receive(t, o.s, 40)...)
	Close(t, o.s)
	last, pos := o.state(t)
	o.back(t, last-20, pos)
	o.s = o.subscribe(t)
	o.seen.Await(t, 1)
	o.publish(t, numbers(60))
	o.expect(t, numbers(60))
	Close(t, o.s)
}
