package rabbitmq

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// longMessage has texts that no AMQP publisher could have sent as they are, but a structured event
// can have.
func longMessage() *bus.Message {
	m := message(strings.Repeat("id\xff", 100_000), strings.Repeat("key", 50_000))
	m.Type, m.Source, m.Subject = strings.Repeat("type", 70), strings.Repeat("/s", 60_000), strings.Repeat("subject ", 40_000)
	m.ContentType = "text/plain; x=" + strings.Repeat("y", 300)
	m.Headers = bus.Headers{{Name: strings.Repeat("n", 300), Value: "v"}, {Name: "millrace-key", Value: "w"}}
	m.Time = m.Time.UTC().Round(0)
	return m
}

// Texts that AMQP does not take are stored, and come back as they were.
func TestStoredLongTexts(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	s, _ := parkingSource(t, d, topic)
	publish(t, d, topic, message("m", "k"))
	ps := parkAll(receive(t, ctx, s, 1))
	want := longMessage()
	ps[0].Message = want
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	next, o := parkingSource(t, d, topic)
	told := o.told(t, ctx, 1)
	if told[0].Key != want.Key {
		t.Errorf("told of the key %.40q", told[0].Key)
	}
	dst := make([]bus.Delivery, 1)
	if n, err := next.Fetch(ctx, []bus.Token{told[0].Token}, dst); n != 1 || err != nil || !reflect.DeepEqual(dst[0].Message, want) {
		t.Errorf("fetched %d, %v: %.300v", n, err, dst[0].Message)
	}
	// It is known by its whole id.
	other := *want
	other.ID += "x"
	withdraw := func(m *bus.Message) driver.Parking {
		return driver.Parking{Withdraw: true, Delivery: bus.Delivery{Message: m, Token: told[0].Token}}
	}
	if err := d.Inject(ctx, topic, "g", []driver.Parking{withdraw(&other), withdraw(want)}); err != nil {
		t.Fatal(err)
	}
	if told := o.told(t, ctx, 2); !told[1].Withdrawn {
		t.Errorf("told of %+v", told[1])
	}

	p, _ := newPoison(t)
	e := driver.PoisonEntry{ID: "e", Message: want, Topic: "t", Group: "g"}
	if err := p.Put(ctx, e); err != nil {
		t.Fatal(err)
	}
	for got, err := range p.List(ctx) {
		if err != nil || !reflect.DeepEqual(got.Message, want) {
			t.Errorf("listed %.300v, %v", got, err)
		}
	}
}

// A message that is too large to be stored is refused by itself, before it is sent.
func TestTooLargeToStore(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	proxy, c := newProxy(t)
	c.MaxMessage = 64 << 10
	d := openDriver(t, c)
	s, _ := parkingSource(t, d, topic)
	publish(t, d, topic, messages(0, 3, 3)...)
	ps := parkAll(receive(t, ctx, s, 3))
	// The largest message that can be published can be stored with all its facts. Another
	// publisher's message may be larger.
	largest := message(ps[0].ID, "k")
	largest.Headers = bus.Headers{{Name: "h", Value: strings.Repeat("v", 32<<10)}}
	largest.Payload = make([]byte, c.MaxMessage-largest.Size())
	ps[0].Message, ps[0].Failure = largest, &bus.Failure{Text: strings.Repeat("\x01", 16<<10), Stack: strings.Repeat("s", 16<<10)}
	large := *ps[1].Message
	large.Payload = make([]byte, c.MaxMessage+storedRoom)
	ps[1].Message = &large
	closed := func() int {
		proxy.mu.Lock()
		defer proxy.mu.Unlock()
		return proxy.told[method{20, 40}]
	}
	before := closed()
	pe, ok := errors.AsType[*bus.PublishError](s.Park(ctx, ps))
	if n := closed() - before; n > 0 {
		t.Errorf("the broker closed %d channels", n)
	}
	if !ok || pe.Errs[0] != nil || !errors.Is(pe.Errs[1], bus.ErrTooLarge) || bus.IsRetryable(pe.Errs[1]) || pe.Errs[2] != nil {
		t.Errorf("park: %v", pe)
	}
	if !ps[0].Token.Parked || ps[1].Token.Parked || !ps[2].Token.Parked {
		t.Errorf("parked: %v, %v, %v", ps[0].Token.Parked, ps[1].Token.Parked, ps[2].Token.Parked)
	}
	p, err := d.Poison(ctx, newName(t, "group"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, _ = call(ctx, d.pub.link.Current(), func(_ context.Context, tp *topology) (struct{}, error) {
			return struct{}{}, tp.deleteQueue(p.(*poisonStore).stream)
		})
	}()
	before = closed()
	err = p.Put(ctx, driver.PoisonEntry{ID: "large", Message: &large}, driver.PoisonEntry{ID: "largest", Message: largest, Failure: *ps[0].Failure})
	if !errors.Is(err, bus.ErrTooLarge) || bus.IsRetryable(err) {
		t.Errorf("put: %v", err)
	}
	if ids := listIDs(t, p); !slices.Equal(ids, []string{"largest"}) {
		t.Errorf("listed %v", ids)
	}
	if n := closed() - before; n > 0 {
		t.Errorf("the broker closed %d channels", n)
	}
}

// The server's limit is learnt from its refusal.
func TestSizeLimit(t *testing.T) {
	l := sizeLimit{own: 1000}
	for _, reason := range []string{"PRECONDITION_FAILED - something else", "PRECONDITION_FAILED - message size 600 is larger than configured max size 500"} {
		if err := l.check(1000); err != nil {
			t.Error(err)
		}
		l.learn([]error{nil, &amqplink.RefusedError{Err: amqplink.ErrNack}, &amqplink.RefusedError{Err: &amqp.Error{Code: amqp.PreconditionFailed, Reason: reason}}})
	}
	if err := l.check(500); err != nil {
		t.Error(err)
	}
	if err := l.check(501); !errors.Is(err, bus.ErrTooLarge) {
		t.Error(err)
	}
}

// A parked record that cannot be read is fetched as it is, and keeps no other from being fetched.
func TestUnreadableParked(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	publish(t, d, topic, message("m", "k"))
	ps := parkAll(receive(t, ctx, s, 1))
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	queue := parkedName(groupName(topic, "g"), 0)
	if err := d.pub.send(ctx, 1, func(_ int, x *amqplink.Parcel) error {
		x.Key = queue
		x.Publishing = amqp.Publishing{
			Headers: amqp.Table{parkHeader: parkMessage, positionHeader: int64(7), revisionHeader: int64(1), keyHeader: "k"}, Body: []byte("damaged"),
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	told := o.told(t, ctx, 1) // nobody knew of it
	dst := make([]bus.Delivery, 2)
	n, err := s.Fetch(ctx, []bus.Token{told[0].Token, ps[0].Token}, dst)
	if n != 2 || err != nil {
		t.Fatalf("fetched %d, %v", n, err)
	}
	bad := dst[0]
	if bad.Failure == nil || bad.Failure.Class != driver.Unreadable || string(bad.Payload) != "damaged" || bad.ID == "" || bad.Key != "k" || dst[1].ID != "m" {
		t.Errorf("fetched %+v and %+v", bad, dst[1])
	}
	if err := s.Settle(ctx, tokens(dst)); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(ctx); err != nil {
		t.Fatal(err)
	}
	_, o = parkingSource(t, d, topic)
	o.waitLanes(t, ctx, 1)
	o.told(t, ctx, 0)
}

// Records of the poison stream that cannot be read are entries, which can be removed.
func TestUnreadablePoison(t *testing.T) {
	ctx := testContext(t)
	p, d := newPoison(t)
	bad := []amqp.Publishing{
		{Body: []byte("foreign")},
		{Headers: amqp.Table{poisonHeader: poisonPut, entryHeader: "bad"}, Body: []byte("damaged")},
		{Headers: amqp.Table{poisonHeader: poisonRemove}, Body: []byte("damaged")},
		{Headers: amqp.Table{poisonHeader: "of a later version"}, Body: []byte("{}")},
	}
	if err := p.Put(ctx, entry("1")); err != nil {
		t.Fatal(err)
	}
	if err := d.pub.send(ctx, len(bad), func(i int, x *amqplink.Parcel) error {
		x.Key, x.Publishing = p.(*poisonStore).stream, bad[i]
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := p.Put(ctx, entry("2")); err != nil {
		t.Fatal(err)
	}
	var ids []string
	for e, err := range p.List(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Failure.Class == driver.Unreadable {
			if got, want := string(e.Message.Payload), string(bad[len(ids)].Body); got != want {
				t.Errorf("%s: %q, want %q", e.ID, got, want)
			}
			ids = append(ids, e.ID)
		} else if e.ID != "1" && e.ID != "2" {
			t.Errorf("%+v", e)
		}
	}
	if len(ids) != len(bad) || ids[1] != "bad" {
		t.Fatalf("unreadable are %v", ids)
	}
	if err := p.Remove(ctx, ids...); err != nil {
		t.Fatal(err)
	}
	if left := listIDs(t, p); !slices.Equal(left, []string{"1", "2"}) {
		t.Errorf("then there are %v", left)
	}
}

// A command does nothing if it means another message than the message at its place. A command of an
// earlier version, which names no message, is carried out.
func TestCommandsNameTheirMessage(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 1
	d := openDriver(t, c)
	s, o := parkingSource(t, d, topic)
	publish(t, d, topic, messages(0, 3, 3)...)
	ps := parkAll(receive(t, ctx, s, 3))
	if err := s.Park(ctx, ps); err != nil {
		t.Fatal(err)
	}
	at := func(i int, id string, withdraw bool) driver.Parking {
		return driver.Parking{Withdraw: withdraw, Due: time.Now(), Delivery: bus.Delivery{Message: message(id, ps[i].Key), Token: ps[i].Token}}
	}
	if err := d.Inject(ctx, topic, "g", []driver.Parking{
		at(0, "other", true), at(0, "other", false), at(1, ps[1].ID, false), at(2, ps[2].ID, true),
	}); err != nil {
		t.Fatal(err)
	}
	o.wait(t, ctx, "a change and a withdrawal", func() bool { return len(o.parked) >= 2 })
	if err := d.pub.send(ctx, 1, func(_ int, x *amqplink.Parcel) error {
		x.Key = parkedName(groupName(topic, "g"), 0)
		x.Publishing = amqp.Publishing{Headers: amqp.Table{parkHeader: "withdraw", positionHeader: ps[1].Position, commandHeader: "c"}}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	told := o.told(t, ctx, 3)
	slices.SortFunc(told, func(a, b driver.Parked) int { return int(a.Position - b.Position) })
	for i, want := range []driver.Parked{{Token: ps[1].Token}, {Token: ps[1].Token, Withdrawn: true}, {Token: ps[2].Token, Withdrawn: true}} {
		if told[i].Token != want.Token || told[i].Withdrawn != want.Withdrawn {
			t.Errorf("told of %+v, want %+v", told[i], want)
		}
	}
	dst := make([]bus.Delivery, 3)
	if n, err := s.Fetch(ctx, []bus.Token{ps[0].Token, ps[1].Token, ps[2].Token}, dst); n != 1 || err != nil || dst[0].ID != ps[0].ID {
		t.Errorf("fetched %d, %v", n, err)
	}
}
