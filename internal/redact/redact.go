// Package redact prints the URLs of brokers without their secrets.
package redact

import (
	"net/url"
	"slices"
	"strings"
)

// Malformed says why [url.Parse] refused rawURL. It quotes nothing: the parser's own text may hold
// a piece of the password.
func Malformed(rawURL string, err error) string {
	switch text := err.Error(); {
	case strings.Contains(text, "missing protocol scheme"):
		return "missing protocol scheme"
	case strings.Count(rawURL, "[") > 1:
		return "more than one IPv6 host: a URL takes one; give the others names, or use the driver's Config"
	case strings.Contains(text, "invalid port"):
		return "malformed: a port is not a number; user and password come before an @, as in scheme://user:password@host"
	}
	return "malformed; characters such as / ? # % in user and password must be percent-encoded"
}

const hidden = "xxxxx"

// URL prints u without its password. It also hides other possible passwords: query parameters with
// a telling name or value, and parts with a misplaced @.
func URL(u *url.URL) string {
	c := *u
	q := c.Query()
	for name, values := range q {
		if !IsName(name) {
			q = nil
			c.RawQuery = hidden
			break
		}
		for i := range values {
			values[i] = Value(name, values[i])
		}
	}
	if len(q) > 0 {
		c.RawQuery = q.Encode()
	}
	if strings.ContainsAny(c.Opaque, ":@") {
		c.Opaque = hidden
	}
	if strings.Contains(c.Path, "@") {
		c.Path, c.RawPath = "/"+hidden, ""
	}
	if c.Fragment != "" {
		c.Fragment, c.RawFragment = hidden, ""
	}
	return c.Redacted()
}

// IsName reports whether name can be a parameter's. Any other text may be the rest of a password,
// and must not be printed.
func IsName(name string) bool {
	const most = 40
	return name != "" && len(name) <= most && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	})
}

// Value returns a parameter's value as errors may print it.
func Value(name, value string) string {
	if isSecret(name) || strings.Contains(value, "@") || strings.Contains(value, "://") {
		return hidden
	}
	return value
}

func isSecret(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{"pass", "pwd", "secret", "token", "key", "auth", "credential"}, func(s string) bool { return strings.Contains(name, s) })
}
