package bus

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/millrace-go/millrace/internal/reserved"
)

// complete fills empty fields and checks the limits that every broker shares.
func (b *Bus) complete(m *Message, now time.Time) error {
	if m == nil {
		return fmt.Errorf("%w: the message is nil", ErrInvalid)
	}
	if m.ID == "" {
		m.ID = newID(now)
	} else if err := checkText("ID", m.ID); err != nil {
		return err
	}
	if m.Time.IsZero() {
		m.Time = now
	} else if err := checkTime("Time", m.Time); err != nil {
		return err
	}
	if m.Source == "" {
		m.Source = b.options.source
	} else if err := checkText("Source", m.Source); err != nil {
		return err
	}
	if err := checkText("Type", m.Type); err != nil {
		return err
	}
	if err := checkText("Subject", m.Subject); err != nil {
		return err
	}
	if err := checkText("ContentType", m.ContentType); err != nil {
		return err
	}
	for i := range m.Headers {
		if err := checkHeader(m.Headers[i].Name); err != nil {
			return err
		}
	}
	if len(m.Headers) > 0 {
		if _, err := deliverAt(m); err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	if len(m.Key) > maxText {
		return fmt.Errorf("%w: Key has %d bytes: want at most %d", ErrInvalid, len(m.Key), maxText)
	}
	if b.limit > 0 && m.Size() > b.limit {
		return fmt.Errorf("%w: %d bytes with its headers: this bus takes at most %d", ErrTooLarge, m.Size(), b.limit)
	}
	return nil
}

// maxText is the limit of AMQP's short fields, and so the limit on every broker.
const maxText = 255

func checkID(id string) error {
	if id == "" {
		return fmt.Errorf("%w: the message has no ID", ErrInvalid)
	}
	return checkText("ID", id)
}

// checkTime refuses years that RFC 3339, and so the wire form, cannot hold.
func checkTime(field string, t time.Time) error {
	for _, year := range []int{t.Year(), t.UTC().Year()} {
		if year < 0 || year > 9999 {
			return fmt.Errorf("%w: %s is in the year %d: want 0 to 9999", ErrInvalid, field, year)
		}
	}
	return nil
}

func checkText(field, text string) error {
	if len(text) > maxText || !plainText(text) {
		return fmt.Errorf("%w: %s is %.40q: want at most %d bytes of UTF-8 without control characters", ErrInvalid, field, text, maxText)
	}
	return nil
}

// plainText is true for valid UTF-8 without control characters. The loop over bytes is enough for
// nearly all texts.
func plainText(s string) bool {
	ascii := true
	for i := range len(s) {
		c := s[i]
		if c < 0x20 || c == 0x7f {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return ascii || utf8.ValidString(s)
}

// reservedHeaders are the header names under which drivers write the message's own fields.
var reservedHeaders = []string{"ce_", "ce-", "cloudevents_", "cloudevents:", "millrace-"}

func checkHeader(name string) error {
	if name == "" || len(name) > maxText || !utf8.ValidString(name) || strings.IndexByte(name, 0) >= 0 {
		return fmt.Errorf("%w: header name %.40q: want 1 to %d bytes of UTF-8", ErrInvalid, name, maxText)
	}
	if len(name) < 3 || !strings.ContainsAny(name[:1], "cCmM") { // nearly all names: no reserved one can begin so
		return nil
	}
	lower := strings.ToLower(name)
	for _, prefix := range reservedHeaders {
		if strings.HasPrefix(lower, prefix) {
			return fmt.Errorf("%w: header name %q: names that begin with %q are reserved for the message's own fields", ErrInvalid, name, prefix)
		}
	}
	if lower == "content-type" {
		return fmt.Errorf("%w: header name %q is reserved: set ContentType", ErrInvalid, name)
	}
	return nil
}

// checkTopic reports why a topic cannot be published to.
func checkTopic(name string) error {
	if err := checkName("topic", name); err != nil {
		return err
	}
	if reserved.Topic(name) {
		return fmt.Errorf("%w: topic name %q: names that begin with \"millrace.\" or \"millrace_\" are for Millrace's own records", ErrInvalid, name)
	}
	return nil
}

// checkName is CheckName of package driver.
func checkName(what, name string) error {
	bad := name == "" || len(name) > 200 || name == "." || name == ".."
	for i := 0; i < len(name) && !bad; i++ {
		c := name[i]
		bad = !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-')
	}
	if bad {
		return fmt.Errorf("%w: %s name %.60q: want 1 to 200 of the characters a-z A-Z 0-9 . _ -", ErrInvalid, what, name)
	}
	return nil
}
