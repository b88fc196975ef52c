package kafka

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// The records in these tests are stored at brokers: an older version reads the records of this
// version, and this version reads the older records.

const (
	storedFailure = `{"class":"permanent","text":"no \u003cway\u003e","stack":"main.go:1","attempts":3,` +
		`"first":"2026-11-30T12:00:00.123456789Z","last":"2026-11-30T12:00:01.123456789Z","replays":1}`
	storedFacts = `{"handler":"h","attempt":2,"firstseen":"2026-11-30T12:00:00.123456789Z","failure":` + storedFailure
)

func storedExamples() (m *bus.Message, p driver.Parking, e driver.PoisonEntry) {
	at := time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.UTC)
	m = &bus.Message{ID: "m1", Key: "k", Type: "t", Source: "/s", Time: at, Payload: []byte("p")}
	f := bus.Failure{Class: "permanent", Text: "no <way>", Stack: "main.go:1", Attempts: 3, First: at, Last: at.Add(time.Second), Replays: 1}
	p = driver.Parking{Delivery: bus.Delivery{Message: m, Handler: "h", Attempt: 2, FirstSeen: at, Failure: &f}, Due: at, Delayed: true}
	e = driver.PoisonEntry{ID: "e1", Message: m, Topic: "orders", Group: "g", Handler: "h", Lane: 1, Position: 5, Failure: f, Waits: true, Host: "host", Time: at}
	return m, p, e
}

// ourHeaders returns the headers of a record behind the message's headers.
func ourHeaders(r *kgo.Record) (all []string) {
	for _, h := range r.Headers {
		if strings.HasPrefix(h.Key, "millrace-") {
			all = append(all, fmt.Sprintf("%s: %s", h.Key, h.Value))
		}
	}
	return all
}

func TestStoredParkedMessages(t *testing.T) {
	m, p, _ := storedExamples()
	var parked, bare kgo.Record
	if err := encodeParked(&parked, "t", "77", 1, &p, "w/1"); err != nil {
		t.Fatal(err)
	}
	if err := encodeParked(&bare, "t", "77", 1, &driver.Parking{Delivery: bus.Delivery{Message: m}}, ""); err != nil {
		t.Fatal(err)
	}
	command, err := inject("t", 1, &p)
	if err != nil {
		t.Fatal(err)
	}
	command.Key = []byte("inject-1")
	carriedOut, err := moved(&command, 99, "w/2")
	if err != nil {
		t.Fatal(err)
	}
	p.Token = bus.Token{Parked: true, Position: 55}
	replace, err := inject("t", 1, &p)
	if err != nil {
		t.Fatal(err)
	}
	p.Withdraw = true
	withdraw, err := inject("t", 1, &p)
	if err != nil {
		t.Fatal(err)
	}
	const key, due = "millrace-key: k", "millrace-due: 1796040000123457 free"
	for name, c := range map[string]struct {
		record *kgo.Record
		want   []string
	}{
		"parked":      {&parked, []string{"millrace-facts: " + storedFacts + `,"writer":"w/1"}`, key, due}},
		"bare":        {&bare, []string{`millrace-facts: {"attempt":0,"firstseen":"0001-01-01T00:00:00Z"}`, key, "millrace-due: 0"}},
		"new":         {&command, []string{"millrace-facts: " + storedFacts + "}", key, due, "millrace-park: new"}},
		"carried out": {&carriedOut, []string{"millrace-facts: " + storedFacts + `,"writer":"w/2","command":"inject-1"}`, key, due}},
		"replace":     {&replace, []string{"millrace-facts: " + storedFacts + "}", key, due, "millrace-park: replace 55"}},
		"withdraw":    {&withdraw, []string{"millrace-id: m1", "millrace-park: withdraw 55"}},
	} {
		if got := ourHeaders(c.record); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n%s\nwant\n%s", name, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
	p.Withdraw = false
	d, err := decodeParked(&parked, &bus.Subscription{}, bus.Token{})
	want := p.Delivery
	want.Token = bus.Token{}
	if err != nil || !reflect.DeepEqual(d, want) {
		t.Errorf("%+v (%v)", d, err)
	}
	told := parkedOf(&parked, bus.Lane{ID: 1, Epoch: 3}, 77)
	if told.Key != "k" || !told.Delayed || !told.Due.Equal(time.UnixMicro(1796040000123457)) || told.Token != (bus.Token{Lane: 1, Epoch: 3, Position: 77, Parked: true}) {
		t.Errorf("%+v", told)
	}
}

func TestStoredEntriesOfEarlierVersions(t *testing.T) {
	_, _, want := storedExamples()
	var r kgo.Record
	if err := encodeEntry(&r, "t", &want); err != nil {
		t.Fatal(err)
	}
	for i := range r.Headers {
		if r.Headers[i].Key == headerFacts {
			r.Headers[i].Value = []byte(`{"topic":"orders","group":"g","handler":"h","lane":1,"position":5,"failure":` + storedFailure +
				`,"waits":true,"host":"host","time":"2026-11-30T12:00:00.123456789Z"}`)
		}
	}
	if got := (&poisonStore{}).decodeEntry(&r); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}
