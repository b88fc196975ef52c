package postgres

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/millrace-go/millrace/bus/driver"
)

// native are the URL's parameters that pgx understands.
var native = []string{
	"sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "sslsni", "sslnegotiation", "channel_binding",
	"connect_timeout", "application_name", "target_session_attrs", "passfile", "search_path", "statement_timeout",
	"default_query_exec_mode", "pool_max_conns", "pool_min_conns", "pool_max_conn_lifetime", "pool_max_conn_idle_time",
	"pool_health_check_period",
}

// Connection reads the parts of a URL that tell how to connect, for programs that reach the same database
// beside the bus: user, password, host, database, passwordfile, and the parameters that pgx and
// libpq define. [driver.Params.Err] has the mistakes; then the result is nil.
//
// A server that is not on this machine must prove who it is (sslmode=verify-full), unless sslmode
// or PGSSLMODE says otherwise. The password's and the certificates' files are read for each
// connection.
func Connection(p *driver.Params) *pgxpool.Config {
	q := url.Values{}
	for _, name := range native {
		if v := p.Text(name, ""); v != "" {
			q.Set(name, v)
		}
	}
	password := p.Password()
	u := *p.URL()
	if u.Opaque != "" {
		p.Fail("want postgres://user:password@host/database")
		return nil
	}
	_, given := u.User.Password()
	given = given || p.Text("passwordfile", "") != ""
	if u.User != nil {
		u.User = url.User(u.User.Username()) // errors of the library could show the password
	}
	u.RawQuery = q.Encode()
	pc, err := pgxpool.ParseConfig(u.String())
	if err == nil && mode(q) == "" && !isLocal(pc.ConnConfig) {
		q.Set("sslmode", "verify-full")
		u.RawQuery = q.Encode()
		pc, err = pgxpool.ParseConfig(u.String())
	}
	if err != nil {
		p.Fail("%w", err)
		return nil
	}
	if !q.Has("pool_max_conns") {
		pc.MaxConns = DefaultPoolSize
	}
	text := u.String()
	pc.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
		now, err := pgx.ParseConfig(text)
		if err != nil {
			return err
		}
		cc.TLSConfig, cc.Fallbacks, cc.Password = now.TLSConfig, now.Fallbacks, now.Password
		if given {
			cc.Password, err = password()
		}
		return err
	}
	return pc
}

// mode returns the sslmode that somebody chose.
func mode(q url.Values) string {
	service := os.Getenv("PGSERVICE") // a file that may choose one
	return cmp.Or(q.Get("sslmode"), os.Getenv("PGSSLMODE"), service)
}

// isLocal says whether all hosts are this machine.
func isLocal(c *pgx.ConnConfig) bool {
	hosts := []string{c.Host}
	for _, f := range c.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	return !slices.ContainsFunc(hosts, func(host string) bool {
		return !strings.HasPrefix(host, "/") && host != "localhost" && !net.ParseIP(host).IsLoopback()
	})
}

// isTLSRefusal knows the library's own refusal, too, which is text.
func isTLSRefusal(err error) bool {
	return driver.IsTLSRefusal(err) || strings.Contains(err.Error(), "server refused TLS connection")
}

// unproven explains an error of a connection whose URL has no sslmode.
func unproven(err error) error {
	if !isTLSRefusal(err) {
		return err
	}
	return fmt.Errorf("%w: without sslmode in the URL, a server on another machine must prove who it is: name its authority with sslrootcert=FILE, or choose an sslmode", err)
}
