// Package sqlmessage writes messages into the columns of SQL tables, where this is not plain. The
// SQL drivers and the outbox share it.
package sqlmessage

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-go/millrace/bus"
)

// Headers are a JSON text: [["name","value"],…]. A value that is not UTF-8 comes as a third, base64
// element of its pair: ["name","","/+0="]. A pair without a name is the message's time, if
// nanoseconds since 1970 cannot hold it.

// EncodeHeaders returns the text of m's headers, and false if there are none.
func EncodeHeaders(m *bus.Message) (text string, ok bool) {
	far := !fitsNanos(m.Time)
	if len(m.Headers) == 0 && !far {
		return "", false
	}
	b := []byte{'['}
	if far {
		b = appendPair(b, "", m.Time.UTC().Format(time.RFC3339Nano))
	}
	for i := range m.Headers {
		b = appendPair(b, m.Headers[i].Name, m.Headers[i].Value)
	}
	b[len(b)-1] = ']'
	return string(b), true
}

func appendPair(b []byte, name, value string) []byte {
	b = appendString(append(b, '['), name)
	if utf8.ValidString(value) {
		b = appendString(append(b, ','), value)
	} else {
		b = append(b, `,"","`...)
		b = base64.StdEncoding.AppendEncode(b, []byte(value))
		b = append(b, '"')
	}
	return append(b, "],"...)
}

// appendString appends s, which is UTF-8, as a JSON string.
func appendString(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
		case c < 0x20:
			b = append(b, `\u00`...)
			b = append(b, hex[c>>4], hex[c&15])
		default:
			b = append(b, c)
		}
	}
	return append(b, '"')
}

// DecodeHeaders puts the headers of a text into m. A text of a foreign program, which EncodeHeaders
// did not write, becomes a header of its own, named "headers". The message is not worth less for
// it.
func DecodeHeaders(m *bus.Message, text string) {
	if text == "" || decodePlain(m, text) {
		return
	}
	m.Headers = nil
	if !decodeJSON(m, text) {
		m.Headers = bus.Headers{{Name: "headers", Value: text}}
	}
}

func decodeJSON(m *bus.Message, text string) bool {
	var pairs [][]string
	if err := json.Unmarshal([]byte(text), &pairs); err != nil {
		return false
	}
	for _, p := range pairs {
		if len(p) == 3 {
			raw, err := base64.StdEncoding.DecodeString(p[2])
			if err != nil {
				return false
			}
			p[1] = string(raw)
		} else if len(p) != 2 {
			return false
		}
		if p[0] != "" {
			m.Headers.Add(p[0], p[1])
			continue
		}
		t, err := time.Parse(time.RFC3339Nano, p[1])
		if err != nil {
			return false
		}
		m.Time = t
	}
	return true
}

// decodePlain reads EncodeHeaders's text of plain headers, which are nearly all. It returns false
// if it meets something else. The headers share the text's memory.
func decodePlain(m *bus.Message, text string) bool {
	if strings.IndexByte(text, '\\') >= 0 || len(text) < 2 || text[0] != '[' {
		return false
	}
	m.Headers = make(bus.Headers, 0, strings.Count(text, `"],`)+1)
	for text != "]" {
		text = text[1:] // [ at first, a comma then
		name, rest, ok := cutString(text, '[')
		if !ok || name == "" {
			return false
		}
		value, rest, ok := cutString(rest, ',')
		if !ok || rest == "" || rest[0] != ']' {
			return false
		}
		m.Headers = append(m.Headers, bus.Header{Name: name, Value: value})
		text = rest[1:]
		if text == "" {
			return false
		}
	}
	return true
}

// cutString takes a string without escapes off the front of text, after one byte that must be
// before it.
func cutString(text string, before byte) (s, rest string, ok bool) {
	if len(text) < 3 || text[0] != before || text[1] != '"' {
		return "", "", false
	}
	end := strings.IndexByte(text[2:], '"')
	if end < 0 {
		return "", "", false
	}
	return text[2 : 2+end], text[3+end:], true
}

// fitsNanos reports whether nanoseconds since 1970 can hold t.
func fitsNanos(t time.Time) bool {
	s := t.Unix()
	return s > math.MinInt64/int64(time.Second) && s < math.MaxInt64/int64(time.Second)
}

// Nanos returns the time as nanoseconds since 1970, or 0 if they cannot hold it: then EncodeHeaders
// has it.
func Nanos(t time.Time) int64 {
	if !fitsNanos(t) {
		return 0
	}
	return t.UnixNano()
}
