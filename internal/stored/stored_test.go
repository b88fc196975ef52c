package stored

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// The drivers wrote the texts in these tests before they shared this package. The texts are stored
// at brokers.

var (
	at      = time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.UTC)
	failure = bus.Failure{
		Class: "permanent", Text: "no <way>", Stack: "main.go:1", Attempts: 3, First: at, Last: at.Add(time.Second), Replays: 1,
	}
)

const failureText = `{"class":"permanent","text":"no \u003cway\u003e","stack":"main.go:1","attempts":3,` +
	`"first":"2026-11-30T12:00:00.123456789Z","last":"2026-11-30T12:00:01.123456789Z","replays":1}`

func TestFacts(t *testing.T) {
	for _, c := range []struct {
		delivery bus.Delivery
		text     string
	}{
		{
			bus.Delivery{Handler: "h", Attempt: 2, FirstSeen: at, Failure: &failure},
			`{"handler":"h","attempt":2,"firstseen":"2026-11-30T12:00:00.123456789Z","failure":` + failureText + `}`,
		},
		{bus.Delivery{}, `{"attempt":0,"firstseen":"0001-01-01T00:00:00Z"}`},
	} {
		text, err := json.Marshal(FactsOf(&c.delivery))
		if err != nil || string(text) != c.text {
			t.Errorf("%s (%v), want %s", text, err, c.text)
		}
		var f Facts
		if err := json.Unmarshal([]byte(c.text), &f); err != nil {
			t.Fatal(err)
		}
		var got bus.Delivery
		if f.Fill(&got); !reflect.DeepEqual(got, c.delivery) {
			t.Errorf("%+v, want %+v", got, c.delivery)
		}
	}
}

func TestFactsThatADriverAddsTo(t *testing.T) {
	type more struct {
		Facts
		Writer string `json:"writer,omitempty"`
	}
	const want = `{"handler":"h","attempt":2,"firstseen":"2026-11-30T12:00:00.123456789Z","writer":"w/1"}`
	text, err := json.Marshal(more{FactsOf(&bus.Delivery{Handler: "h", Attempt: 2, FirstSeen: at}), "w/1"})
	if err != nil || string(text) != want {
		t.Errorf("%s (%v), want %s", text, err, want)
	}
}

func TestEntry(t *testing.T) {
	full := driver.PoisonEntry{
		Topic: "orders", Group: "g", Handler: "h", Lane: 1, Position: 5, Waits: true, Failure: failure, Host: "host", Time: at,
	}
	bare := driver.PoisonEntry{Topic: "orders", Group: "g", Failure: bus.Failure{Class: "x", Text: "y"}}
	for _, c := range []struct {
		name  string
		entry driver.PoisonEntry
		text  string
	}{
		{
			"RabbitMQ and SQL", full,
			`{"topic":"orders","group":"g","handler":"h","lane":1,"position":5,"waits":true,"failure":` + failureText +
				`,"host":"host","time":"2026-11-30T12:00:00.123456789Z"}`,
		},
		{
			"RabbitMQ and SQL, as little as there can be", bare,
			`{"topic":"orders","group":"g","handler":"","lane":0,"position":0,"failure":{"class":"x","text":"y","attempts":0,` +
				`"first":"0001-01-01T00:00:00Z","last":"0001-01-01T00:00:00Z"},"host":"","time":"0001-01-01T00:00:00Z"}`,
		},
		{
			"Kafka", full,
			`{"topic":"orders","group":"g","handler":"h","lane":1,"position":5,"failure":` + failureText +
				`,"waits":true,"host":"host","time":"2026-11-30T12:00:00.123456789Z"}`,
		},
		{
			"Kafka, as little as there can be", bare,
			`{"topic":"orders","group":"g","lane":0,"position":0,"failure":{"class":"x","text":"y","attempts":0,` +
				`"first":"0001-01-01T00:00:00Z","last":"0001-01-01T00:00:00Z"},"time":"0001-01-01T00:00:00Z"}`,
		},
		{
			"Watermill, as little as there can be", bare,
			`{"topic":"orders","group":"g","lane":0,"position":0,"failure":{"class":"x","text":"y","attempts":0,` +
				`"first":"0001-01-01T00:00:00Z","last":"0001-01-01T00:00:00Z"},"host":"","time":"0001-01-01T00:00:00Z"}`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, err := json.Marshal(EntryOf(&c.entry))
			if err != nil || !reflect.DeepEqual(object(t, string(text)), object(t, c.text)) {
				t.Errorf("%s (%v), want %s", text, err, c.text)
			}
			var e Entry
			if err := json.Unmarshal([]byte(c.text), &e); err != nil {
				t.Fatal(err)
			}
			want, m := c.entry, &bus.Message{}
			want.ID, want.Message = "e1", m
			if got := e.Of("e1", m); !reflect.DeepEqual(got, want) {
				t.Errorf("%+v, want %+v", got, want)
			}
		})
	}
	if text, _ := json.Marshal(EntryOf(&bare)); string(text) != `{"topic":"orders","group":"g","handler":"","lane":0,"position":0,`+
		`"failure":{"class":"x","text":"y","attempts":0,"first":"0001-01-01T00:00:00Z","last":"0001-01-01T00:00:00Z"},`+
		`"host":"","time":"0001-01-01T00:00:00Z"}` {
		t.Errorf("%s is not byte for byte what RabbitMQ's and SQL's drivers wrote", text)
	}
}

// object reads a JSON object. A text that is empty is the same as none to every reader.
func object(t *testing.T, text string) map[string]any {
	t.Helper()
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	for name, value := range o {
		if value == "" {
			delete(o, name)
		}
	}
	return o
}

func TestDue(t *testing.T) {
	for _, c := range []struct {
		due    time.Time
		micros int64
		back   time.Time
	}{
		{time.Time{}, 0, time.Time{}},
		{at, 1796040000123457, at.Add(211)}, // rounded up
		{time.UnixMicro(1796040000123457), 1796040000123457, time.UnixMicro(1796040000123457)},
		{time.Unix(0, 1), 1, time.UnixMicro(1)},
		{time.Unix(-10, 0), -10_000_000, time.Time{}}, // due at once, either way
	} {
		if got := Micros(c.due); got != c.micros {
			t.Errorf("%v is stored as %d, want %d", c.due, got, c.micros)
		}
		if got := Due(c.micros); !got.Equal(c.back) {
			t.Errorf("%d is read as %v, want %v", c.micros, got, c.back)
		}
	}
}
