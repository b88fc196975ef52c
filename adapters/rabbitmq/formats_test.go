package rabbitmq

import (
	"reflect"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// TestStoredFormats holds the formats stored at brokers: an older version reads the records of this
// version, and the other way round.
func TestStoredFormats(t *testing.T) {
	const failure = `{"class":"permanent","text":"no \u003cway\u003e","stack":"main.go:1","attempts":3,` +
		`"first":"2026-11-30T12:00:00.123456789Z","last":"2026-11-30T12:00:01.123456789Z","replays":1}`
	at := time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.UTC)
	m := &bus.Message{ID: "m1", Key: "k", Type: "t", Source: "/s", Time: at, Payload: []byte("p")}
	f := bus.Failure{Class: "permanent", Text: "no <way>", Stack: "main.go:1", Attempts: 3, First: at, Last: at.Add(time.Second), Replays: 1}
	p := &driver.Parking{Delivery: bus.Delivery{Message: m, Handler: "h", Attempt: 2, FirstSeen: at, Failure: &f}, Due: at, Delayed: true}
	e := &driver.PoisonEntry{ID: "e1", Message: m, Topic: "orders", Group: "g", Handler: "h", Lane: 1, Position: 5, Failure: f, Waits: true, Host: "host", Time: at}
	parked := func(p *driver.Parking, kind string) amqp.Publishing {
		pub, err := encodeParked(p, kind)
		if err != nil {
			t.Fatal(err)
		}
		return pub
	}
	poisoned, err := encodeEntry(e)
	if err != nil {
		t.Fatal(err)
	}
	command := func(p driver.Parking) amqp.Publishing {
		var x amqplink.Parcel
		if err := inject(&p, "g", 4, &x); err != nil {
			t.Fatal(err)
		}
		delete(x.Headers, commandHeader)
		return x.Publishing
	}
	replace, withdraw := *p, *p
	replace.Token = bus.Token{Parked: true, Position: 55, Lane: 1}
	withdraw.Token, withdraw.Withdraw = replace.Token, true
	const body = `p{"facts":{"handler":"h","attempt":2,"firstseen":"2026-11-30T12:00:00.123456789Z","failure":` + failure + `}}`
	event := amqp.Table{
		"cloudEvents_id": "m1", "cloudEvents_source": "/s", "cloudEvents_specversion": "1.0",
		"cloudEvents_time": "2026-11-30T12:00:00.123456789Z", "cloudEvents_type": "t", "millrace-key": "k", "millrace-size": int64(1),
	}
	with := func(t amqp.Table) amqp.Table {
		for name, value := range event {
			t[name] = value
		}
		return t
	}
	const due = int64(1796040000123457)
	for _, c := range []struct {
		name    string
		pub     amqp.Publishing
		headers amqp.Table
		body    string
	}{
		{"parked", parked(p, "message"), with(amqp.Table{"millrace-park": "message", "millrace-due": due, "millrace-free": true}), body},
		{
			"as little as there can be", parked(&driver.Parking{Delivery: bus.Delivery{Message: m}}, "message"),
			with(amqp.Table{"millrace-park": "message", "millrace-due": int64(0)}), `p{"facts":{"attempt":0,"firstseen":"0001-01-01T00:00:00Z"}}`,
		},
		{"new", command(*p), with(amqp.Table{"millrace-park": "new", "millrace-position": int64(0), "millrace-due": due, "millrace-free": true}), body},
		{"replace", command(replace), with(amqp.Table{"millrace-park": "replace", "millrace-position": int64(55), "millrace-due": due, "millrace-free": true}), body},
		{"withdraw", command(withdraw), amqp.Table{"millrace-park": "withdraw", "millrace-position": int64(55)}, ""},
		{
			"poisoned", poisoned, with(amqp.Table{"millrace-poison": "put", "millrace-entry": "e1"}),
			`p{"facts":{"topic":"orders","group":"g","handler":"h","lane":1,"position":5,"waits":true,"failure":` + failure +
				`,"host":"host","time":"2026-11-30T12:00:00.123456789Z"}}`,
		},
	} {
		if !reflect.DeepEqual(c.pub.Headers, c.headers) || string(c.pub.Body) != c.body {
			t.Errorf("%s: %v\n%s\nwant %v\n%s", c.name, c.pub.Headers, c.pub.Body, c.headers, c.body)
		}
	}
}
