package logattr_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/millrace-go/millrace/internal/logattr"
)

func TestText(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"short":             {"id", "id"},
		"just short enough": {strings.Repeat("x", 128), strings.Repeat("x", 128)},
		"long":              {strings.Repeat("x", 129), strings.Repeat("x", 128) + "…"},
		"128 characters":    {strings.Repeat("é", 128), strings.Repeat("é", 128)},
		"long, no ASCII":    {strings.Repeat("é", 200), strings.Repeat("é", 128) + "…"},
		"long, no UTF-8":    {"\xff" + strings.Repeat("x", 200), "\uFFFD" + strings.Repeat("x", 127) + "…"},
	} {
		got := logattr.Text(c.text).LogValue().String()
		if got != c.want || !utf8.ValidString(got) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
