package sqltest

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// transactional subscribes as a router does that was asked for exactly once.
func transactional(t *testing.T, b *bus.Bus, topic string, o bus.LaneObserver) driver.JoiningSource {
	t.Helper()
	s, err := b.Driver().Subscribe(bounded(t), bus.Subscription{Topic: topic, Group: "g", InFlight: 512, Bytes: 1 << 20, Transactional: true}, o)
	if err != nil {
		t.Fatal(err)
	}
	return s.(driver.JoiningSource)
}

func output(topic, text string) []driver.Output {
	return []driver.Output{{Topic: topic, Message: &bus.Message{ID: bus.NewID(), Source: "/s", Key: "k", Time: time.Now(), Payload: []byte(text), Headers: bus.Headers{{Name: "h", Value: `a"\b{},`}}}}}
}

// published returns the messages published to a topic, as a new group sees them.
func published(t *testing.T, b *bus.Bus, topic string) []string {
	t.Helper()
	Publish(t, b, topic, &bus.Message{Key: "k", Payload: []byte("end")})
	s := Subscribe(t, b, topic, "g", bus.Earliest, NewObserver())
	defer Close(t, s)
	var texts []string
	for {
		for _, d := range Receive(t, s, 1) {
			if string(d.Payload) == "end" {
				return texts
			}
			if len(d.Headers) != 1 || d.Headers[0].Value != `a"\b{},` || d.Key != "k" {
				t.Errorf("%s came with %v, key %q", d.Payload, d.Headers, d.Key)
			}
			texts = append(texts, string(d.Payload))
		}
	}
}

// settlesWith: outputs and settlement are one, and a stale or refused settlement is so by itself.
func settlesWith(t *testing.T, db Database) {
	b, in, out := db.Open(t), Topic(), Topic()
	limit := b.Driver().Capabilities().MaxMessage
	Publish(t, b, in, Texts("a", "b", "c", "d", "e")...)
	s := transactional(t, b, in, NewObserver())
	ds := Receive(t, s, 5)
	ss := make([]driver.Settlement, 0, 4)
	for _, d := range ds[:4] {
		ss = append(ss, driver.Settlement{Token: d.Token, Outputs: append(output(out, "1 of "+string(d.Payload)), output(out, "2 of "+string(d.Payload))...)})
	}
	ss[1].Token.Epoch++
	refused := limit > 0 && limit < 100<<20
	if refused {
		ss[2].Outputs[1].Message.Payload = make([]byte, limit)
	}
	errs := bus.Outcomes(s.SettleWith(bounded(t), ss), 4)
	if errs[0] != nil || !errors.Is(errs[1], bus.ErrStale) || errors.Is(errs[2], bus.ErrTooLarge) != refused || errs[3] != nil {
		t.Errorf("%v", errs)
	}
	if err := s.SettleWith(bounded(t), ss[:1]); !errors.Is(err, bus.ErrStale) {
		t.Errorf("settling again: %v", err)
	}
	Settle(t, s, ds[4])
	Close(t, s)
	want := []string{"1 of " + string(ds[0].Payload), "2 of " + string(ds[0].Payload)}
	left := []string{string(ds[1].Payload)}
	if refused {
		left = append(left, string(ds[2].Payload))
	} else {
		want = append(want, "1 of "+string(ds[2].Payload), "2 of "+string(ds[2].Payload))
	}
	want = append(want, "1 of "+string(ds[3].Payload), "2 of "+string(ds[3].Payload))
	if got := published(t, b, out); !slices.Equal(got, want) {
		t.Errorf("published were %q, want %q", got, want)
	}
	s = transactional(t, b, in, NewObserver())
	got := Payloads(Receive(t, s, len(left)))
	slices.Sort(got)
	slices.Sort(left)
	if !slices.Equal(got, left) {
		t.Errorf("then came %q, want %q", got, left)
	}
	Close(t, s)
}

// transactionOfAStaleOwner: it publishes nothing, and the member notices that it has lost its lanes.
func transactionOfAStaleOwner(t *testing.T, db Database) {
	b, in, out, o := db.Open(t), Topic(), Topic(), NewObserver()
	s := transactional(t, b, in, o)
	Publish(t, b, in, Texts(numbers(20)...)...)
	ds := Receive(t, s, 20)
	db.exec(t, "UPDATE "+db.Prefix+"lane SET owner = 'somebody', epoch = epoch + 1 WHERE grp = "+fmt.Sprint(db.groupID(t, in)))
	var ss []driver.Settlement
	for _, d := range ds {
		ss = append(ss, driver.Settlement{Token: d.Token, Outputs: output(out, "no")})
	}
	for i, err := range bus.Outcomes(s.SettleWith(bounded(t), ss), len(ss)) {
		if !errors.Is(err, bus.ErrStale) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if got := published(t, b, out); len(got) > 0 {
		t.Errorf("%q was published", got)
	}
	for _, d := range ds {
		if o.Owns(&d) {
			t.Errorf("lane %d is not lost", d.Lane)
		}
	}
	Close(t, s)
}

// parksInTransactions: parking is one with the settlement at the origin, and the end of a parked
// message with its outputs. A settled message is not parked any more, and a withdrawn one is not
// settled.
func parksInTransactions(t *testing.T, db Database) {
	b, in, out := db.Open(t), Topic(), Topic()
	Publish(t, b, in, Texts("a", "b", "c", "d")...)
	s := transactional(t, b, in, NewObserver())
	ds := Receive(t, s, 4)
	slices.SortFunc(ds, func(a, b bus.Delivery) int { return strings.Compare(string(a.Payload), string(b.Payload)) })
	if err := s.SettleWith(bounded(t), []driver.Settlement{{Token: ds[3].Token, Outputs: output(out, "D")}}); err != nil {
		t.Fatal(err)
	}
	parking := s.(driver.ParkingSource)
	ps := make([]driver.Parking, 3)
	for i, k := range []int{0, 3, 1} {
		ps[i] = driver.Parking{Delivery: ds[k]}
	}
	if err := parking.Park(bounded(t), ps); !errors.Is(err, bus.ErrStale) || !ps[0].Token.Parked || ps[1].Token.Parked || !ps[2].Token.Parked {
		t.Errorf("%v: %v %v %v", err, ps[0].Token, ps[1].Token, ps[2].Token)
	}
	if err := s.SettleWith(bounded(t), []driver.Settlement{{Token: ds[0].Token, Outputs: output(out, "no")}}); !errors.Is(err, bus.ErrStale) {
		t.Errorf("settling what is parked at its origin: %v", err)
	}
	db.exec(t, "DELETE FROM "+db.Prefix+"parked WHERE grp = "+fmt.Sprint(db.groupID(t, in))+" AND pos > 0 AND shard = "+fmt.Sprint(int64(ps[2].Token.Lane))+" AND pos = "+fmt.Sprint(ps[2].Token.Position))
	errs := bus.Outcomes(s.SettleWith(bounded(t), []driver.Settlement{{Token: ps[0].Token, Outputs: output(out, "A")}, {Token: ps[2].Token, Outputs: output(out, "no")}}), 2)
	if errs[0] != nil || !errors.Is(errs[1], bus.ErrStale) {
		t.Errorf("%v", errs)
	}
	// Messages that Park has settled at the origin are durably settled when it returns.
	lagger, _ := bus.As[driver.Lagger](db.Open(t))
	if left, err := lagger.Lag(bounded(t), in, "g"); left.Messages != 1 || err != nil {
		t.Errorf("%d left: %v", left.Messages, err)
	}
	Close(t, s)
	next := transactional(t, b, in, NewObserver())
	if got := Payloads(Receive(t, next, 1)); !slices.Equal(got, []string{"c"}) {
		t.Errorf("then came %q", got)
	}
	if got := published(t, b, out); !slices.Equal(got, []string{"D", "A"}) {
		t.Errorf("published were %q", got)
	}
	Close(t, next)
}

// begin begins a transaction as a user does. On SQLite the first statement that writes makes it a writer's.
func (db Database) begin(t *testing.T) *sql.Tx {
	t.Helper()
	tx, err := db.DB.BeginTx(bounded(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	return tx
}

// settleIn settles in a transaction of its own. The caller says how the transaction ends, and what
// the driver is told of the end.
func (db Database) settleIn(t *testing.T, s driver.JoiningSource, d bus.Delivery, outputs []driver.Output, end func(*sql.Tx) error) error {
	t.Helper()
	tx := db.begin(t)
	defer tx.Rollback()
	ended, err := s.SettleIn(bounded(t), tx, []bus.Token{d.Token}, outputs)
	if err != nil {
		_ = tx.Rollback()
		return ended(err)
	}
	return ended(end(tx))
}

// settlesInForeignTransactions: a message settled in a user's transaction is settled if the
// transaction was committed, whatever was said of the commit.
func settlesInForeignTransactions(t *testing.T, db Database) {
	b, in, out := db.Open(t), Topic(), Topic()
	Publish(t, b, in, Texts("a", "b", "c", "d", "e", "f")...)
	s := transactional(t, b, in, NewObserver())
	ds := Receive(t, s, 6)
	commit := func(tx *sql.Tx) error { return tx.Commit() }
	cut := errors.New("cut")
	committedAndCut := func(tx *sql.Tx) error { return errors.Join(tx.Commit(), cut) }
	undoneAndCut := func(tx *sql.Tx) error { return errors.Join(tx.Rollback(), cut) }

	if err := db.settleIn(t, s, ds[0], output(out, "A"), commit); !errors.Is(err, driver.ErrAgain) {
		t.Errorf("with a topic that is new: %v", err)
	}
	for i, step := range []struct {
		d    int
		end  func(*sql.Tx) error
		want error
	}{
		{0, undoneAndCut, cut},
		{0, commit, nil},
		{0, commit, bus.ErrStale},
		{1, committedAndCut, nil},
		{1, commit, bus.ErrStale},
		{2, undoneAndCut, cut},
		{3, commit, nil},
		{2, undoneAndCut, cut},
	} {
		text := fmt.Sprintf("%d", i)
		if err := db.settleIn(t, s, ds[step.d], output(out, text), step.end); !errors.Is(err, step.want) || step.want == nil && err != nil {
			t.Errorf("step %d: %v, want %v", i, err, step.want)
		}
	}
	parking := s.(driver.ParkingSource)
	ps := []driver.Parking{{Delivery: ds[4]}}
	if err := parking.Park(bounded(t), ps); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		text string
		end  func(*sql.Tx) error
		want error
	}{{"no", undoneAndCut, cut}, {"parked", committedAndCut, nil}, {"no", commit, bus.ErrNotFound}} {
		if err := db.settleIn(t, s, ps[0].Delivery, output(out, step.text), step.end); !errors.Is(err, step.want) || step.want == nil && err != nil {
			t.Errorf("parked: %v, want %v", err, step.want)
		}
	}
	if got := published(t, b, out); !slices.Equal(got, []string{"1", "3", "6", "parked"}) {
		t.Errorf("published were %q", got)
	}
	Close(t, s)
	s = transactional(t, b, in, NewObserver())
	got := Payloads(Receive(t, s, 2))
	want := []string{string(ds[2].Payload), string(ds[5].Payload)}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("then came %q, want %q", got, want)
	}
	Close(t, s)
}

// foreignTransactionOfAStaleOwner cannot be committed, and the member notices.
func foreignTransactionOfAStaleOwner(t *testing.T, db Database) {
	b, in, o := db.Open(t), Topic(), NewObserver()
	Publish(t, b, in, Texts("a")...)
	s := transactional(t, b, in, o)
	d := Receive(t, s, 1)[0]
	db.exec(t, "UPDATE "+db.Prefix+"lane SET owner = 'somebody', epoch = epoch + 1 WHERE grp = "+fmt.Sprint(db.groupID(t, in)))
	if err := db.settleIn(t, s, d, nil, (*sql.Tx).Commit); !errors.Is(err, bus.ErrStale) {
		t.Error(err)
	}
	if o.Owns(&d) {
		t.Error("the lane is not lost")
	}
	Close(t, s)
}

// manyForeignTransactions settle in the same lanes at once, and at random are not committed or nobody knows whether they were.
func manyForeignTransactions(t *testing.T, db Database) {
	const n = 200
	b, in, out := db.Open(t), Topic(), Topic()
	Publish(t, b, in, Texts(numbers(n)...)...)
	Publish(t, b, out, &bus.Message{Key: "k", Payload: []byte("first"), Headers: output(out, "")[0].Message.Headers})
	s := transactional(t, b, in, NewObserver())
	ds := Receive(t, s, n)
	var settling sync.WaitGroup
	next := make(chan bus.Delivery)
	for range 8 {
		settling.Go(func() {
			for d := range next {
				for {
					kind := rand.N(4)
					err := db.settleIn(t, s, d, output(out, string(d.Payload)), func(tx *sql.Tx) error {
						switch kind {
						case 0:
							return errors.Join(tx.Rollback(), errors.New("cut"))
						case 1:
							return errors.Join(tx.Commit(), errors.New("cut"))
						}
						return tx.Commit()
					})
					if err == nil {
						break
					}
					if _, early := bus.UnavailableFor(err); kind > 0 && !early && !bus.IsRetryable(err) {
						t.Error(err)
						break
					}
				}
			}
		})
	}
	for _, d := range ds {
		next <- d
	}
	close(next)
	settling.Wait()
	lagger, _ := bus.As[driver.Lagger](db.Open(t))
	if left, err := lagger.Lag(bounded(t), in, "g"); left.Messages != 0 || err != nil {
		t.Errorf("%d left: %v", left.Messages, err)
	}
	got := published(t, b, out)
	want := append(numbers(n), "first")
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("published were %q", got)
	}
	Close(t, s)
}

// checksTransactions: only those in the database of the bus will do.
func checksTransactions(t *testing.T, db Database) {
	host, _ := bus.As[driver.TransactionHost](db.Open(t))
	tx := db.begin(t)
	if err := host.CheckTransaction(bounded(t), tx); err != nil {
		t.Error(err)
	}
	_ = tx.Rollback()
	tx = db.begin(t)
	if _, err := tx.ExecContext(bounded(t), "UPDATE "+db.Prefix+"meta SET install = 'another'"); err != nil {
		t.Fatal(err)
	}
	if err := host.CheckTransaction(bounded(t), tx); !errors.Is(err, bus.ErrInvalid) || !strings.Contains(err.Error(), "belong to another bus") {
		t.Errorf("another installation: %v", err)
	}
	_ = tx.Rollback()
}

// fetching is an observer that fetches parked messages as soon as it is told of them.
type fetching struct {
	*Observer
	source chan driver.ParkingSource
	got    chan int
}

// Parked implements driver.ParkingObserver.
func (f *fetching) Parked(ps []driver.Parked) {
	s := <-f.source
	f.source <- s
	tokens := make([]bus.Token, len(ps))
	for i := range ps {
		tokens[i] = ps[i].Token
	}
	n, err := s.Fetch(context.Background(), tokens, make([]bus.Delivery, len(ps)))
	if err != nil {
		n = -1
	}
	f.got <- n
}

// fetchesAtOnce: a parked message can be fetched as soon as it is known. Otherwise its owner would
// take it for gone.
func fetchesAtOnce(t *testing.T, db Database) {
	b, in := db.Open(t), Topic()
	Publish(t, b, in, Texts("a")...)
	s := transactional(t, b, in, NewObserver())
	ps := []driver.Parking{{Delivery: Receive(t, s, 1)[0]}}
	if err := s.(driver.ParkingSource).Park(bounded(t), ps); err != nil {
		t.Fatal(err)
	}
	Close(t, s)
	f := &fetching{NewObserver(), make(chan driver.ParkingSource, 1), make(chan int, 1)}
	s = transactional(t, b, in, f)
	f.source <- s.(driver.ParkingSource)
	if n := <-f.got; n != 1 {
		t.Errorf("%d were fetched", n)
	}
	Close(t, s)
}

// scattered: a message that is settled behind more unfinished messages than the lane's row can name
// would come again after a crash. So it is refused, until older messages are finished.
func scattered(t *testing.T, db Database) {
	const n = 9000
	b, in, out := db.Open(t, "shards=1"), Topic(), Topic()
	Publish(t, b, in, Texts(numbers(n)...)...)
	subscribe := func() driver.JoiningSource {
		s, err := b.Driver().Subscribe(bounded(t), bus.Subscription{Topic: in, Group: "g", InFlight: 2 * n, Bytes: 64 << 20, Transactional: true}, NewObserver())
		if err != nil {
			t.Fatal(err)
		}
		return s.(driver.JoiningSource)
	}
	s := subscribe()
	ds := Receive(t, s, n)
	last := []driver.Settlement{{Token: ds[n-1].Token, Outputs: output(out, "last")}}
	if err := s.SettleWith(bounded(t), last); err == nil || errors.Is(err, bus.ErrStale) || !bus.IsRetryable(err) || !strings.Contains(err.Error(), "too many unfinished messages") {
		t.Errorf("settling behind %d unfinished messages: %v", n-1, err)
	}
	Settle(t, s, ds[:n/2]...)
	if err := s.SettleWith(bounded(t), last); err != nil {
		t.Errorf("settling behind %d unfinished messages: %v", n/2-1, err)
	}
	Close(t, s)
	if got := published(t, b, out); !slices.Equal(got, []string{"last"}) {
		t.Errorf("published were %q", got)
	}
	s = subscribe()
	for _, d := range Receive(t, s, n/2-1) {
		if string(d.Payload) == string(ds[n-1].Payload) {
			t.Error("the last message comes again")
		}
	}
	Close(t, s)
}
