package conformance

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

var abilityChecks = []check{
	{"abilities/claimed", abilitiesClaimed},
}

// abilitiesClaimed: a driver does what it claims, by its method set or its Capabilities. It has no
// ability that it does not claim: nobody would use it, and a wrapper that claims too little looks
// the same. The other themes test each ability in depth; RunWay does so for JoiningSource.
func abilitiesClaimed(e *env) {
	b := e.bus()
	t := &abilityTrial{env: e, bus: b}
	caps := e.capabilities(b)
	source, _ := e.source(b, bus.Subscription{Topic: e.name("claims"), Group: e.name("g"), Transactional: caps.Transactions})
	_, parks := source.(driver.ParkingSource)
	_, transacts := source.(driver.TransactionalSource)
	joining, joins := source.(driver.JoiningSource)
	_, injects := bus.As[driver.Injector](b)
	host, hosts := bus.As[driver.TransactionHost](b)
	t.claim(caps.Parking, "Capabilities.Parking", parks, "driver.ParkingSource")
	t.claim(caps.Parking, "Capabilities.Parking", injects, "driver.Injector")
	t.claim(caps.Transactions, "Capabilities.Transactions", transacts, "driver.TransactionalSource")
	t.claim(hosts, "driver.TransactionHost", joins, "driver.JoiningSource")
	t.counts()
	if parks && injects {
		t.parks()
	}
	if transacts && caps.Transactions {
		t.transacts()
	}
	if hosts && joins {
		t.hosts(host, joining)
	}
	t.endsWithTheBus()
}

// abilityTrial is one run of the check.
type abilityTrial struct {
	*env
	bus *bus.Bus
}

// claim compares a claim with the ability that it is about.
func (t *abilityTrial) claim(claimed bool, by string, has bool, ability string) {
	switch {
	case claimed && !has:
		t.errorf("%s claims it, but there is no %s", by, ability)
	case has && !claimed:
		t.errorf("there is a %s, which %s does not claim", ability, by)
	}
}

// counts asks how many messages are not finished. When the source has committed, or has settled if
// it is no Committer, all of the broker knows that none is left.
func (t *abilityTrial) counts() {
	topic, group := t.name("counted"), t.name("g-counted")
	s, _ := t.source(t.bus, bus.Subscription{Topic: topic, Group: group})
	t.publish(t.bus, topic, &bus.Message{ID: "0", Key: "k"}, &bus.Message{ID: "1", Key: "k"}, &bus.Message{ID: "2", Key: "k"})
	lagger, counts := bus.As[driver.Lagger](t.bus)
	if counts {
		t.wait("three messages to count as unfinished", func() bool {
			n, err := lagger.Lag(t.ctx, topic, group)
			if errors.Is(err, bus.ErrNotFound) { // the member has only just come
				return false
			}
			t.must(err, "lag")
			return n.Messages == 3
		})
		if _, err := lagger.Lag(t.ctx, topic, t.name("nobody")); !errors.Is(err, bus.ErrNotFound) {
			t.errorf("lag of a group that does not exist: %v, want ErrNotFound", err)
		}
	}
	var tokens []bus.Token
	for _, d := range t.receive(s, 3) {
		tokens = append(tokens, d.Token)
	}
	if t.serial {
		tokens = tokens[2:]
	}
	t.settle(s, tokens)
	if lagger, ok := bus.As[driver.Lagger](t.env.bus()); ok {
		n, err := lagger.Lag(t.ctx, topic, group)
		t.must(err, "lag")
		if n.Messages != 0 {
			t.errorf("%d messages count as unfinished although their settlements are durable", n.Messages)
		}
	}
}

// settle returns when the settlements are durable.
func (t *abilityTrial) settle(s bus.Source, tokens []bus.Token) {
	t.must(s.Settle(t.ctx, tokens), "settle")
	if c, ok := s.(driver.Committer); ok {
		t.must(c.Commit(t.ctx), "commit")
	}
}

// parks puts one message aside and one more from outside, and reads both back.
func (t *abilityTrial) parks() {
	topic, group := t.name("parked"), t.name("g-parked")
	s, o := t.parkingSource(t.bus, topic, group)
	t.publish(t.bus, topic, &bus.Message{ID: "1", Key: "k"})
	p := []driver.Parking{{Delivery: t.receive(s, 1)[0], Due: time.Now().Add(time.Hour)}}
	t.must(s.Park(t.ctx, p), "park")
	if !p[0].Token.Parked {
		t.fatalf("Park has parked nothing")
	}
	injector, _ := bus.As[driver.Injector](t.bus)
	m := &bus.Message{ID: "2", Key: "k", Source: "/s", Time: time.Now()}
	t.must(injector.Inject(t.ctx, topic, group, []driver.Parking{{Delivery: bus.Delivery{Message: m}}}), "inject")
	there := append([]driver.Parked{{Token: p[0].Token}}, t.told(o, 1)...)
	got := t.fetch(s, there)
	if len(got) != 2 || got[0].ID != "1" || got[1].ID != "2" {
		t.fatalf("fetched %+v", got)
	}
	t.settle(s, []bus.Token{got[0].Token, got[1].Token})
	if left := t.fetch(s, there); len(left) != 0 {
		t.errorf("%d of 2 messages are still parked after they were settled", len(left))
	}
}

// transacts settles a message with an output: both happen. With a stale token neither happens.
func (t *abilityTrial) transacts() {
	in, out, group := t.name("in"), t.name("out"), t.name("g-in")
	results, _ := t.source(t.bus, bus.Subscription{Topic: out, Group: t.name("g-out")})
	sub := bus.Subscription{Topic: in, Group: group, Transactional: true}
	first, _ := t.source(t.bus, sub)
	t.publish(t.bus, in, &bus.Message{ID: "1", Key: "k"})
	old := t.receive(first, 1)[0].Token
	t.must(t.settleWith(first, old, out, "1-out"), "settle with an output")
	if got := t.receive(results, 1)[0]; got.ID != "1-out" {
		t.errorf("the output came as %s", got.ID)
	}
	t.must(first.Close(t.ctx), "close")
	next, _ := t.source(t.bus, sub)
	t.publish(t.bus, in, &bus.Message{ID: "2", Key: "k"})
	d := t.receive(next, 1)[0]
	if d.ID != "2" {
		t.errorf("%s comes again, although it was settled with its output", d.ID)
	}
	if err := t.settleWith(next, old, out, "stale-out"); !errors.Is(err, bus.ErrStale) {
		t.errorf("settle with a token of an old ownership: %v, want ErrStale", err)
	}
	t.must(t.settleWith(next, d.Token, out, "2-out"), "settle with an output")
	if got := t.receive(results, 1)[0]; got.ID != "2-out" {
		t.errorf("%s was published, and want 2-out", got.ID)
	}
}

func (t *abilityTrial) settleWith(s bus.Source, token bus.Token, topic, id string) error {
	m := &bus.Message{ID: id, Key: "k", Source: "/s", Time: time.Now()}
	return s.(driver.TransactionalSource).SettleWith(t.ctx, []driver.Settlement{{Token: token, Outputs: []driver.Output{{Topic: topic, Message: m}}}})
}

// hosts refuses to take part in anything but a transaction in the driver's database.
func (t *abilityTrial) hosts(host driver.TransactionHost, s driver.JoiningSource) {
	if err := host.CheckTransaction(t.ctx, foreign{}); err == nil {
		t.errorf("CheckTransaction accepts what is no transaction of the database")
	}
	t.publish(t.bus, t.name("claims"), &bus.Message{ID: "1", Key: "k"})
	d := t.receive(s, 1)[0]
	end, err := s.SettleIn(t.ctx, foreign{}, []bus.Token{d.Token}, nil)
	if err == nil {
		t.errorf("SettleIn settles in what is no transaction of the database")
	}
	if end(errForeign) == nil {
		t.errorf("SettleIn settles although its transaction was rolled back")
	}
}

// foreign is a transaction elsewhere, in which the driver's statements fail.
type foreign struct{}

var errForeign = errors.New("a transaction of another database")

// ExecContext implements driver.Execer.
func (foreign) ExecContext(context.Context, string, ...any) (sql.Result, error) {
	return nil, errForeign
}

// endsWithTheBus: after the close of their bus, abilities fail as all methods do.
func (t *abilityTrial) endsWithTheBus() {
	if p, ok := bus.As[driver.Pinger](t.bus); ok {
		t.must(p.Ping(t.ctx), "ping")
	}
	b := t.env.bus()
	t.must(b.Close(), "close")
	closed := func(what string, err error) {
		if !errors.Is(err, bus.ErrClosed) {
			t.errorf("%s after close: %v, want ErrClosed", what, err)
		}
	}
	topic, group := t.name("counted"), t.name("g-counted")
	if p, ok := bus.As[driver.Pinger](b); ok {
		closed("ping", p.Ping(t.ctx))
	}
	if l, ok := bus.As[driver.Lagger](b); ok {
		_, err := l.Lag(t.ctx, topic, group)
		closed("lag", err)
	}
	if i, ok := bus.As[driver.Injector](b); ok {
		m := &bus.Message{ID: "3", Key: "k", Source: "/s", Time: time.Now()}
		closed("inject", i.Inject(t.ctx, topic, group, []driver.Parking{{Delivery: bus.Delivery{Message: m}}}))
	}
}
