// Package printable makes text safe for terminals. Messages, keys and errors come from publishers
// whom nobody need trust: control characters would move the cursor, change the title or send input,
// and bidirectional marks would show a text in another order than it has.
package printable

import (
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// Text returns s with each character escaped that is not printable: control characters (C0, DEL and
// C1, with tab and line feed), bidirectional and other format characters, private and unassigned
// ones, spaces but the plain one. The escapes are those of JSON (\u001b); a byte that is no UTF-8 is
// \xff. A printable text is returned as it is.
func Text(s string) string {
	for i, r := range s {
		if !is(r, s[i:]) {
			return string(appendText(append(make([]byte, 0, len(s)+16), s[:i]...), s[i:], ""))
		}
	}
	return s
}

// Writer returns a writer that passes text on to w with the escapes of [Text], but with its tabs and
// line feeds. In JSON that encoding/json has made the escapes mean what was there. Each call is a
// text of its own: it must not end within a character. It may be called as w may.
func Writer(w io.Writer) io.Writer { return writer{w} }

type writer struct{ to io.Writer }

// Write implements io.Writer. It returns the length of text, or 0 and an error.
func (w writer) Write(text []byte) (int, error) {
	if _, err := w.to.Write(appendText(make([]byte, 0, len(text)), string(text), "\t\n")); err != nil {
		return 0, err
	}
	return len(text), nil
}

// is says whether r, with which rest begins, is printable.
func is(r rune, rest string) bool {
	if r == utf8.RuneError {
		_, size := utf8.DecodeRuneInString(rest)
		return size > 1 // else it is a byte that is no UTF-8
	}
	return strconv.IsPrint(r)
}

// appendText appends s with escapes, but for the characters of keep.
func appendText(to []byte, s, keep string) []byte {
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case is(r, s) || r < utf8.RuneSelf && strings.IndexByte(keep, byte(r)) >= 0:
			to = append(to, s[:size]...)
		case r == utf8.RuneError:
			to = append(to, '\\', 'x', hex[s[0]>>4], hex[s[0]&15])
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			to = appendEscape(appendEscape(to, high), low)
		default:
			to = appendEscape(to, r)
		}
		s = s[size:]
	}
	return to
}

const hex = "0123456789abcdef"

func appendEscape(to []byte, r rune) []byte {
	return append(to, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
