package parking

import "testing"

// FuzzParseCommand: a text that is read as a command is written as the same command.
func FuzzParseCommand(f *testing.F) {
	for _, text := range []string{"new", "replace 55", "withdraw -1", "replace", "withdraw 99999999999999999999", "new 1"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := ParseCommand(text)
		if !ok {
			return
		}
		if again, ok := ParseCommand(c.String()); !ok || again != c {
			t.Errorf("%q is read as %+v, and that as %+v, %v", text, c, again, ok)
		}
	})
}
