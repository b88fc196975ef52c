package printable_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/millrace-go/millrace/internal/printable"
)

func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "",
		"order 7, naïve €, 日本 🙂": "order 7, naïve €, 日本 🙂",
		"\x1b]0;title\a":         `\u001b]0;title\u0007`,
		"\x7f":                   `\u007f`,
		"a\u009bm":               `a\u009bm`,
		"\u202eexe.txt":          `\u202eexe.txt`,
		"\u2066x\u2069\u200f":    `\u2066x\u2069\u200f`,
		"a\nb\tc\r":              `a\u000ab\u0009c\u000d`,
		"\xff\x9b":               `\xff\x9b`,
		"\ufffd":                 "\ufffd",
		"\ufeff\U000e0001":       `\ufeff\udb40\udc01`,
	} {
		if got := printable.Text(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestWriter(t *testing.T) {
	var b bytes.Buffer
	w := printable.Writer(&b)
	in := "KEY\tTEXT\n\x1b[2J\u202e\n"
	if n, err := w.Write([]byte(in)); n != len(in) || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if want := "KEY\tTEXT\n\\u001b[2J\\u202e\n"; b.String() != want {
		t.Errorf("%q, want %q", b.String(), want)
	}
	broken := errors.New("broken pipe")
	if n, err := printable.Writer(failing{broken}).Write([]byte("x")); n != 0 || !errors.Is(err, broken) {
		t.Errorf("%d %v", n, err)
	}
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// FuzzPrintable: nothing that is not printable reaches a terminal, and JSON keeps its meaning.
func FuzzPrintable(f *testing.F) {
	for _, s := range []string{"", "plain", "\x00\x1b[31m\x07\x7f", "\u0085\u009b\u200e\u202e\u2069", "\xc3\x28", "\U0001f642\U000e0041"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		safe := func(text, keep string) {
			if !utf8.ValidString(text) {
				t.Fatalf("%q is no UTF-8", text)
			}
			for _, r := range text {
				if !strings.ContainsRune(keep, r) && (unicode.Is(unicode.C, r) || unicode.Is(unicode.Bidi_Control, r) || !unicode.IsPrint(r)) {
					t.Fatalf("%q has %U", text, r)
				}
			}
		}
		once := printable.Text(s)
		safe(once, "")
		if twice := printable.Text(once); twice != once {
			t.Errorf("%q, and once more %q", once, twice)
		}
		var b bytes.Buffer
		if err := json.NewEncoder(printable.Writer(&b)).Encode(s); err != nil {
			t.Fatal(err)
		}
		safe(b.String(), "\n")
		var back string
		if err := json.Unmarshal(b.Bytes(), &back); err != nil || back != strings.ToValidUTF8(s, "\ufffd") && utf8.ValidString(s) {
			t.Errorf("%q came back as %q: %v", s, back, err)
		}
	})
}
