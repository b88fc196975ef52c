package sqlmessage

import (
	"encoding/json"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// FuzzHeaders: every encoded text is JSON, and decodes to the same headers.
func FuzzHeaders(f *testing.F) {
	f.Add("name", "value", "other", "", int64(0))
	f.Add("a\"b", "\x00\xff", "ключ", "значение\u2028", int64(math.MaxInt64))
	f.Add("[", "],[", "\\", "\\", int64(-62135596800))
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, seconds int64) {
		if n1 == "" || n2 == "" || !json.Valid(appendString(nil, n1)) || !json.Valid(appendString(nil, n2)) {
			return // the bus refuses these
		}
		want := bus.Message{Time: time.Unix(seconds%253402300800, 123456789).UTC(), Headers: bus.Headers{{Name: n1, Value: v1}, {Name: n2, Value: v2}}}
		if want.Time.Year() < 0 || string([]rune(n1)) != n1 || string([]rune(n2)) != n2 {
			return
		}
		text, ok := EncodeHeaders(&want)
		if !ok || !json.Valid([]byte(text)) {
			t.Fatalf("%q", text)
		}
		got := bus.Message{Time: time.Unix(0, Nanos(want.Time)).UTC()}
		DecodeHeaders(&got, text)
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("%s\n got %#v\nwant %#v", text, got, want)
		}
	})
}

// FuzzForeignHeaders: any text gives headers, never a panic, and none is lost silently.
func FuzzForeignHeaders(f *testing.F) {
	for _, text := range []string{"", "[]", "[[]]", "null", `[["a","b"]]`, `[["a","b"],]`, `[["a"]]`, `[["a","","!"]]`, `[["","x"]]`, `[["a","b"]`, `[`, `["a","b"]]`, "{}"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var m bus.Message
		DecodeHeaders(&m, text)
		var pairs [][]string
		if json.Unmarshal([]byte(text), &pairs) == nil && len(pairs) == 0 {
			return
		}
		if text != "" && len(m.Headers) == 0 && m.Time.IsZero() {
			t.Errorf("%q is lost", text)
		}
	})
}

func BenchmarkHeaders(b *testing.B) {
	m := bus.Message{Time: time.Now(), Headers: bus.Headers{{Name: "correlationid", Value: "01a20938-ba83-7b36-acc0-50a3c4ded1e5"}, {Name: "traceparent", Value: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}}}
	b.ReportAllocs()
	for b.Loop() {
		text, _ := EncodeHeaders(&m)
		var got bus.Message
		DecodeHeaders(&got, text)
	}
}
