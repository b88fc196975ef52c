package sqltest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// parker is a member that has received messages, in few lanes.
type parker struct {
	db    Database
	b     *bus.Bus
	topic string
	s     driver.ParkingSource
	seen  *parkingObserver
	ds    []bus.Delivery
}

func (db Database) parker(t *testing.T, texts ...string) *parker {
	t.Helper()
	p := &parker{db: db, b: db.Open(t, "shards=2", "lease=10m"), topic: Topic(), seen: newParkingObserver()}
	Publish(t, p.b, p.topic, Texts(texts...)...)
	p.s = Subscribe(t, p.b, p.topic, "g", bus.Earliest, p.seen).(driver.ParkingSource)
	p.seen.Await(t, 2)
	p.ds = Receive(t, p.s, len(texts))
	slices.SortFunc(p.ds, func(a, b bus.Delivery) int { return strings.Compare(string(a.Payload), string(b.Payload)) })
	return p
}

func (p *parker) parkings() []driver.Parking {
	ps := make([]driver.Parking, len(p.ds))
	for i, d := range p.ds {
		ps[i] = driver.Parking{Delivery: d, Due: time.Now().Add(time.Hour)}
	}
	return ps
}

func (p *parker) park(t *testing.T) []driver.Parking {
	t.Helper()
	ps := p.parkings()
	if err := p.s.Park(bounded(t), ps); err != nil {
		t.Fatal(err)
	}
	return ps
}

// rows is how many messages are parked.
func (p *parker) rows(t *testing.T) int64 {
	t.Helper()
	return p.db.number(t, fmt.Sprintf("SELECT COUNT(*) FROM %sparked WHERE grp = %d AND pos > 0 AND doc IS NOT NULL", p.db.Prefix, p.db.groupID(t, p.topic)))
}

func (p *parker) at(t *testing.T, place bus.Token) string {
	t.Helper()
	return fmt.Sprintf(" WHERE grp = %d AND shard = %d AND pos = %d", p.db.groupID(t, p.topic), place.Lane, place.Position)
}

func (p *parker) injector(t *testing.T) driver.Injector {
	t.Helper()
	i, ok := bus.As[driver.Injector](p.b)
	if !ok {
		t.Fatal("no Injector")
	}
	return i
}

// ParksOnce has the answer to a commit of Park lost: parking again makes no second message.
func ParksOnce(t *testing.T, db Database) {
	behind, proxy := db.through(t)
	p := behind.parker(t, "a", "b", "c")
	ps := p.parkings()
	proxy.CutAtCommit()
	err := p.s.Park(bounded(t), ps)
	if err == nil || bus.IsDefinite(err) || !bus.IsRetryable(err) || ps[0].Token.Parked {
		t.Fatalf("parking without an answer: %v", err)
	}
	if n := p.rows(t); n != 3 {
		t.Fatalf("%d messages are parked: the commit was not carried out", n)
	}
	if err := p.s.Park(bounded(t), ps); err != nil {
		t.Fatal(err)
	}
	dst := make([]bus.Delivery, 3)
	if n, err := p.s.Fetch(bounded(t), []bus.Token{ps[0].Token, ps[1].Token, ps[2].Token}, dst); n != 3 || err != nil {
		t.Errorf("%d came back: %v", n, err)
	}
	if n := p.rows(t); n != 3 {
		t.Errorf("%d messages are parked, want 3", n)
	}
}

// ParksAsItsLaneGoes has a member lose its lane while a transaction settles messages at their
// origin and parks them. They must not be settled there without being parked.
func ParksAsItsLaneGoes(t *testing.T, db Database) {
	b, topic, o := db.Open(t, "shards=1", "lease=500ms"), Topic(), newParkingObserver()
	s := transactional(t, b, topic, o)
	o.Await(t, 1)
	Publish(t, b, topic, Texts("a", "b")...)
	var ps []driver.Parking
	for _, d := range Receive(t, s, 2) {
		ps = append(ps, driver.Parking{Delivery: d})
	}
	group := db.groupID(t, topic)
	lane := db.lock(t, fmt.Sprintf("lane WHERE grp = %d", group)) // nobody else can take it, and the transaction waits for it
	member := db.lock(t, fmt.Sprintf("member WHERE grp = %d", group))
	over := make(chan error, 1)
	go func() { over <- s.(driver.ParkingSource).Park(bounded(t), ps) }()
	for timeout := time.After(patience); o.Count() > 0; {
		select {
		case <-o.Events:
		case <-timeout:
			t.Fatal("the lease is not lost")
		}
	}
	lane()
	if err := <-over; !errors.Is(err, bus.ErrStale) {
		t.Errorf("parking in a lane that went: %v", err)
	}
	member()
	if n := len(Receive(t, s, 2)); n != 2 {
		t.Errorf("%d messages came again", n)
	}
	Close(t, s)
}

// parksEach: a message that is too large is refused by itself.
func parksEach(t *testing.T, db Database) {
	p := db.parker(t, "a", "b", "c")
	limit := p.b.Driver().Capabilities().MaxMessage
	if limit == 0 || limit > 100<<20 {
		t.Skipf("the server takes messages of %d bytes: too many for a test", limit)
	}
	ps := p.parkings()
	large := *ps[1].Message
	large.Payload = make([]byte, 2*limit)
	ps[1].Message = &large
	err := p.s.Park(bounded(t), ps)
	each, ok := errors.AsType[*bus.PublishError](err)
	if !ok || each.Errs[0] != nil || each.Errs[2] != nil || !errors.Is(each.Errs[1], bus.ErrTooLarge) || bus.IsRetryable(each.Errs[1]) {
		t.Fatalf("%v", err)
	}
	if !ps[0].Token.Parked || ps[1].Token.Parked || !ps[2].Token.Parked || p.rows(t) != 2 {
		t.Errorf("parked: %v %v %v", ps[0].Token.Parked, ps[1].Token.Parked, ps[2].Token.Parked)
	}
}

// lockedParking: a lane whose row is locked does not keep others from being parked.
func lockedParking(t *testing.T, db Database) {
	p := db.parker(t, numbers(20)...)
	ps := p.parkings()
	end := db.lock(t, fmt.Sprintf("lane WHERE grp = %d AND shard = 1", db.groupID(t, p.topic)))
	each, ok := errors.AsType[*bus.PublishError](p.s.Park(bounded(t), ps))
	if !ok {
		t.Fatal("it was parked in a lane that is locked")
	}
	for i, err := range each.Errs {
		if locked := ps[i].Lane == 1; locked != (err != nil) || locked && !bus.IsRetryable(err) || ps[i].Token.Parked == locked {
			t.Errorf("lane %d: parked %v, %v", ps[i].Lane, ps[i].Token.Parked, err)
		}
	}
	end()
	if err := p.s.Park(bounded(t), ps); err != nil {
		t.Error(err)
	}
	if n := p.rows(t); n != 20 {
		t.Errorf("%d are parked", n)
	}
}

// injectsByID: a message is changed or withdrawn at its place only if it is the one that is meant.
func injectsByID(t *testing.T, db Database) {
	p := db.parker(t, "a", "b")
	ps := p.park(t)
	inject := p.injector(t)
	other := *ps[0].Message
	other.ID, other.Payload = "another", []byte("other")
	for _, withdraw := range []bool{false, true} {
		if err := inject.Inject(bounded(t), p.topic, "g", []driver.Parking{{Delivery: bus.Delivery{Message: &other, Token: ps[0].Token}, Withdraw: withdraw}}); err != nil {
			t.Fatal(err)
		}
	}
	dst := make([]bus.Delivery, 2)
	if n, err := p.s.Fetch(bounded(t), []bus.Token{ps[0].Token}, dst); n != 1 || err != nil || string(dst[0].Payload) != "a" {
		t.Errorf("%d came, %v: the place has another message", n, err)
	}
	if err := inject.Inject(bounded(t), p.topic, "g", []driver.Parking{{Delivery: ps[1].Delivery, Withdraw: true}}); err != nil {
		t.Fatal(err)
	}
	for seen := range p.seen.seen {
		if seen.Withdrawn {
			if seen.Lane != ps[1].Lane || seen.Position != ps[1].Position {
				t.Errorf("withdrawn: %v", seen)
			}
			break
		}
	}
}

// parksBehindChange: somebody changes a message from outside while the owner has it. The change is
// not undone when the owner parks the message again, and the owner hears of it.
func parksBehindChange(t *testing.T, db Database) {
	p := db.parker(t, "a")
	ps := p.park(t)
	tx := db.begin(t)
	defer tx.Rollback()
	for _, q := range []string{
		fmt.Sprintf("UPDATE %sparked SET chg = chg + 1 WHERE grp = %d AND shard = %d AND pos = 0", db.Prefix, db.groupID(t, p.topic), ps[0].Lane),
		"UPDATE " + db.Prefix + "parked SET due = 1, chg = 2" + p.at(t, ps[0].Token),
	} {
		if _, err := tx.ExecContext(t.Context(), q); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := p.s.Park(bounded(t), ps); err != nil {
		t.Fatal(err)
	}
	select {
	case seen := <-p.seen.seen:
		if seen.Position != ps[0].Position || seen.Due.After(time.Now()) {
			t.Errorf("%+v", seen)
		}
	case <-time.After(patience):
		t.Error("the owner did not hear of the change")
	}
}

// unreadable: rows that cannot be read keep nobody from the others.
func unreadable(t *testing.T, db Database) {
	p := db.parker(t, "a", "b")
	ps := p.park(t)
	db.exec(t, "UPDATE "+db.Prefix+"parked SET doc = '[1]'"+p.at(t, ps[0].Token))
	dst := make([]bus.Delivery, 2)
	n, err := p.s.Fetch(bounded(t), []bus.Token{ps[0].Token, ps[1].Token}, dst)
	if n != 1 || err != nil || dst[0].ID != ps[1].ID {
		t.Errorf("%d came back: %v", n, err)
	}
	store, err := driver.Of(p.b).Poison(bounded(t), "g")
	if err != nil {
		t.Fatal(err)
	}
	for id, doc := range map[string]string{"null": "null", "text": `"x"`, "no message": `{"id": "other"}`} {
		db.exec(t, fmt.Sprintf("INSERT INTO %spoison (grp, id, entry) VALUES ('g', '%s %s', '%s')", db.Prefix, p.topic, id, doc))
	}
	found := 0
	var ids []string
	for e, err := range store.List(bounded(t)) {
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(e.ID, p.topic) {
			continue // of another test
		}
		if e.Failure.Class != driver.Unreadable || e.Failure.Text == "" || len(e.Message.Payload) == 0 || e.Group != "g" {
			t.Errorf("%+v", e)
		}
		if e.Topic == p.topic && (e.Lane != ps[0].Lane || e.Position != ps[0].Position || string(e.Message.Payload) != "[1]") {
			t.Errorf("%+v", e)
		}
		ids = append(ids, e.ID)
		found++
	}
	if found != 4 {
		t.Errorf("%d entries", found)
	}
	if err := store.Remove(bounded(t), ids...); err != nil {
		t.Fatal(err)
	}
	for e, err := range store.List(bounded(t)) {
		if err != nil || strings.HasPrefix(e.ID, p.topic) {
			t.Errorf("%s is left, %v", e.ID, err)
		}
	}
}

// parksWhileInjecting: the owner and somebody outside park in one lane at the same time.
func parksWhileInjecting(t *testing.T, db Database) {
	p := db.parker(t, numbers(60)...)
	ps := p.parkings()
	inject := p.injector(t)
	var both sync.WaitGroup
	both.Go(func() {
		for i := range ps {
			err := p.s.Park(bounded(t), ps[i:i+1])
			for bus.IsRetryable(err) { // the lane's row was locked for longer than Park waits
				err = p.s.Park(bounded(t), ps[i:i+1])
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	for range 2 {
		both.Go(func() {
			for i := range ps {
				m := &bus.Message{ID: bus.NewID(), Key: ps[i].Key}
				if err := inject.Inject(bounded(t), p.topic, "g", []driver.Parking{{Delivery: bus.Delivery{Message: m}}}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	both.Wait()
	if n := p.rows(t); n != 180 {
		t.Errorf("%d are parked", n)
	}
}
