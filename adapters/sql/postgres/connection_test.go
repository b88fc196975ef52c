package postgres

import (
	"testing"

	"github.com/millrace-go/millrace/bus/driver"
)

// TestServerMustProveWhoItIs: a server on another machine, unless somebody says that it need not.
func TestServerMustProveWhoItIs(t *testing.T) {
	for _, c := range []struct {
		url, variable string
		verified      bool
	}{
		{"postgres://u@db.example/x", "", true},
		{"postgres://u@127.0.0.1,db.example/x", "", true},
		{"postgres://u@127.0.0.1/x", "", false},
		{"postgres://u@localhost/x", "", false},
		{"postgres://u@[::1]/x", "", false},
		{"postgres:///x", "", false},
		{"postgres://u@db.example/x?sslmode=prefer", "", false},
		{"postgres://u@db.example/x?sslmode=verify-full", "", true},
		{"postgres://u@db.example/x", "require", false},
		{"postgres://u@127.0.0.1/x", "verify-full", true},
	} {
		t.Setenv("PGSSLMODE", c.variable)
		p, err := driver.ParseParams(c.url)
		if err != nil {
			t.Fatal(err)
		}
		pc := Connection(p)
		if err := p.Err(); err != nil {
			t.Fatal(err)
		}
		now := pc.ConnConfig.Copy()
		if err := pc.BeforeConnect(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		// A host that falls back to another setting is not verified; other hosts have settings of
		// their own.
		verified := now.TLSConfig != nil && !now.TLSConfig.InsecureSkipVerify
		for _, f := range now.Fallbacks {
			verified = verified && f.TLSConfig != nil && !f.TLSConfig.InsecureSkipVerify
		}
		if verified != c.verified {
			t.Errorf("%s with PGSSLMODE=%q: verified %v", c.url, c.variable, verified)
		}
	}
}
