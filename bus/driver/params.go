package driver

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/only"
	"github.com/millrace-go/millrace/internal/redact"
)

// Opener opens a driver for a parsed URL. It reads its parameters from p and returns p.Err() if
// that is not nil. It waits within ctx until the broker has answered once, so that a wrong address
// is an error at the start.
type Opener func(ctx context.Context, p *Params) (Driver, error)

// Register makes a driver known to [bus.Open] under a URL scheme. Call it from init. open receives
// the URL's parameters. After a second registration of a scheme every Open fails: otherwise the
// order of imports would choose the driver.
func Register(scheme string, open Opener) {
	bus.Engine(only.Module{}).Register(scheme, func(ctx context.Context, rawURL string) (bus.Driver, error) {
		p, err := ParseParams(rawURL)
		if err != nil {
			return nil, err
		}
		return open(ctx, p)
	})
}

// Params reads a driver's URL. Each method reads one parameter of the query, or returns its
// default. Params collects mistakes, and [Params.Err] reports them all. A driver calls Err last: it
// also reports parameters that no method has read. Params is not safe for concurrent use.
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
		return nil, fmt.Errorf("bus: URL: %w: %s", bus.ErrInvalid, redact.Malformed(rawURL, err))
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("bus: query of the URL %s: %w: a parameter is malformed, or separated by ; and not &", redact.URL(u), bus.ErrInvalid)
	}
	return &Params{url: u, query: q}, nil
}

// URL returns the URL itself: host, path, user. Its String holds the password; print
// [Params.String] instead.
func (p *Params) URL() *url.URL { return p.url }

// String returns the URL with its password redacted.
func (p *Params) String() string { return redact.URL(p.url) }

// Fail records a mistake in the URL outside of the query, such as a missing host.
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

// Text returns the parameter name, which may have any value, or def.
func (p *Params) Text(name, def string) string {
	if v, ok := p.value(name); ok {
		return v
	}
	return def
}

// Duration returns the parameter name, such as 250ms or 1m30s, or def. It must be between lo and
// hi.
func (p *Params) Duration(name string, def, lo, hi time.Duration) time.Duration {
	v, ok := p.value(name)
	if !ok {
		return def
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < lo || d > hi {
		p.Fail("parameter %q is %q: want a duration between %v and %v, such as %v", name, redact.Value(name, v), lo, hi, def)
		return def
	}
	return d
}

// Int returns the parameter name, a whole number between lo and hi, or def.
func (p *Params) Int(name string, def, lo, hi int) int {
	v, ok := p.value(name)
	if !ok {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < lo || n > hi {
		p.Fail("parameter %q is %q: want a whole number between %d and %d", name, redact.Value(name, v), lo, hi)
		return def
	}
	return n
}

// Bool returns the parameter name, true or false, or def.
func (p *Params) Bool(name string, def bool) bool {
	return p.Enum(name, strconv.FormatBool(def), strconv.FormatBool(!def)) == "true"
}

// Enum returns the parameter name, which must be one of the allowed values. The first allowed value
// is the default.
func (p *Params) Enum(name string, allowed ...string) string {
	v, ok := p.value(name)
	if !ok {
		return allowed[0]
	}
	if !slices.Contains(allowed, v) {
		p.Fail("parameter %q is %q: want one of %s", name, redact.Value(name, v), strings.Join(allowed, ", "))
		return allowed[0]
	}
	return v
}

// Err returns all mistakes at once: those of earlier calls, and the parameters that no call has
// read.
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
		if !redact.IsName(name) {
			errs = append(errs, errors.New("a parameter's name is empty or has characters that no parameter has"))
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
	return fmt.Errorf("bus: URL %s: %w: %w", p, bus.ErrInvalid, errors.Join(errs...))
}
