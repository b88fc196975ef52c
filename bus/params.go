package bus

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Params reads a driver's URL. Each method takes one parameter of the query, or its default; mistakes are collected
// and all reported by [Params.Err], which a driver calls last: it also reports parameters that nobody asked for.
// Not safe for concurrent use.
type Params struct {
	url   *url.URL
	query url.Values
	known []string
	errs  []error
}

// ParseParams parses a bus URL. Its errors never hold the URL's password.
func ParseParams(rawURL string) (*Params, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fmt.Errorf("bus: URL: %w: %s", ErrInvalid, malformed(rawURL, err))
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("bus: query of the URL %s: %w: a parameter is malformed, or separated by ; and not &", Redact(u), ErrInvalid)
	}
	return &Params{url: u, query: q}, nil
}

// malformed says why a URL cannot be parsed. It quotes nothing: what the parser quotes may be a piece of the password.
func malformed(rawURL string, err error) string {
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

// Redact prints u without its password, and without what may hold one: some query parameters, and a part that has an @ where none belongs.
func Redact(u *url.URL) string {
	c := *u
	q := c.Query()
	for name, values := range q {
		if !isName(name) {
			q = nil
			c.RawQuery = hidden
			break
		}
		for i := range values {
			values[i] = shown(name, values[i])
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

// isName says whether a parameter's name looks like one: else it may be anything, such as the rest of a password.
func isName(name string) bool {
	const most = 40
	return name != "" && len(name) <= most && !strings.ContainsFunc(name, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	})
}

// shown is a parameter's value as errors may print it.
func shown(name, value string) string {
	if isSecret(name) || strings.Contains(value, "@") || strings.Contains(value, "://") {
		return hidden
	}
	return value
}

func isSecret(name string) bool {
	name = strings.ToLower(name)
	return slices.ContainsFunc([]string{"pass", "pwd", "secret", "token", "key", "auth", "credential"}, func(s string) bool { return strings.Contains(name, s) })
}

// URL returns the URL itself: host, path, user. Its String holds the password; print [Params.String] instead.
func (p *Params) URL() *url.URL { return p.url }

// String prints the URL redacted.
func (p *Params) String() string { return Redact(p.url) }

// Fail reports a mistake in the URL outside of the query, such as a missing host.
func (p *Params) Fail(format string, args ...any) {
	p.errs = append(p.errs, fmt.Errorf(format, args...))
}

func (p *Params) value(name string) (string, bool) {
	p.known = append(p.known, name)
	vs, ok := p.query[name]
	if !ok {
		return "", false
	}
	if len(vs) > 1 {
		p.Fail("parameter %q is given %d times", name, len(vs))
	}
	return vs[0], true
}

// Text is a parameter that may have any value.
func (p *Params) Text(name, def string) string {
	if v, ok := p.value(name); ok {
		return v
	}
	return def
}

// Duration is a parameter such as 250ms or 1m30s, between lo and hi.
func (p *Params) Duration(name string, def, lo, hi time.Duration) time.Duration {
	v, ok := p.value(name)
	if !ok {
		return def
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < lo || d > hi {
		p.Fail("parameter %q is %q: want a duration between %v and %v, such as %v", name, shown(name, v), lo, hi, def)
		return def
	}
	return d
}

// Int is a whole number between lo and hi.
func (p *Params) Int(name string, def, lo, hi int) int {
	v, ok := p.value(name)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi {
		p.Fail("parameter %q is %q: want a whole number between %d and %d", name, shown(name, v), lo, hi)
		return def
	}
	return n
}

// Bool is true or false.
func (p *Params) Bool(name string, def bool) bool {
	return p.Enum(name, strconv.FormatBool(def), strconv.FormatBool(!def)) == "true"
}

// Enum is one of the allowed values, of which the first is the default.
func (p *Params) Enum(name string, allowed ...string) string {
	v, ok := p.value(name)
	if !ok {
		return allowed[0]
	}
	if !slices.Contains(allowed, v) {
		p.Fail("parameter %q is %q: want one of %s", name, shown(name, v), strings.Join(allowed, ", "))
		return allowed[0]
	}
	return v
}

// Err returns all mistakes at once: those of the calls before, and parameters that were not asked for.
func (p *Params) Err() error {
	slices.Sort(p.known)
	known := slices.Compact(p.known)
	var unknown []string
	for name := range p.query {
		if !slices.Contains(known, name) {
			unknown = append(unknown, name)
		}
	}
	slices.Sort(unknown)
	errs := p.errs
	for _, name := range unknown {
		if !isName(name) {
			errs = append(errs, errors.New("a parameter of the query has no name that one can have"))
			continue
		}
		if len(known) == 0 {
			errs = append(errs, fmt.Errorf("parameter %q is unknown: this URL takes none", name))
			continue
		}
		errs = append(errs, fmt.Errorf("parameter %q is unknown: want one of %s", name, strings.Join(known, ", ")))
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("bus: URL %s: %w: %w", p, ErrInvalid, errors.Join(errs...))
}
