// Package logattr has values of log records that publishers choose.
package logattr

import (
	"log/slog"
	"strings"
	"unicode/utf8"
)

// most is how many characters the log has of one value.
const most = 128

// Text is a message's id or type, cut at 128 characters in the log.
type Text string

// LogValue implements slog.LogValuer.
func (t Text) LogValue() slog.Value {
	s := string(t)
	if len(s) <= most {
		return slog.StringValue(s)
	}
	end, n := 0, 0
	for n < most && end < len(s) {
		_, size := utf8.DecodeRuneInString(s[end:])
		end += size
		n++
	}
	if end == len(s) {
		return slog.StringValue(s)
	}
	return slog.StringValue(strings.ToValidUTF8(s[:end], "\uFFFD") + "…")
}
