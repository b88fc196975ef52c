package all_test

import (
	"bytes"
	"context"
	"database/sql"
	"log/slog"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	_ "github.com/go-sql-driver/mysql"
	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/internal/faults"
	"github.com/millrace-go/millrace/router"
)

// secured is a broker that takes TLS.
type secured struct {
	name string
	// url is the broker's, without a user, and the parameters that have a client trust it. wrong
	// are those of a client that does not.
	url          func(t *testing.T) string
	trust, wrong func(t *testing.T) string
	// certificate are the parameters with a client's own certificate, and whether it is needed
	// beside a password.
	certificate func(t *testing.T) string
	needed      bool
	// setPassword makes a user that may do everything, or changes its password.
	setPassword func(t *testing.T, user, password string)
	proxied     bool // a proxy can stand before it
}

func certFile(t *testing.T, name string) string {
	return filepath.Join(brokertest.Setting(t, "MILLRACE_TLS"), name)
}

func caCertKey(t *testing.T) string {
	return "cert=" + url.QueryEscape(certFile(t, "client.pem")) + "&key=" + url.QueryEscape(certFile(t, "client.key"))
}

func caFile(t *testing.T) string { return "ca=" + url.QueryEscape(certFile(t, "ca.pem")) }

func bare(url func(t *testing.T) string) func(t *testing.T) string {
	return func(t *testing.T) string { return withoutUser(t, url(t)) }
}

var securedBrokers = []secured{
	{
		name: "kafka", needed: true, certificate: caCertKey, trust: caFile, wrong: caCertKey,
		url:         bare(func(t *testing.T) string { return brokertest.URL(t, "kafka_tls") }),
		setPassword: setKafkaPassword,
	},
	{
		name: "rabbitmq", needed: true, certificate: caCertKey, trust: caFile, wrong: caCertKey,
		url:         bare(func(t *testing.T) string { return brokertest.URL(t, "rabbitmq_tls") }),
		setPassword: setRabbitMQPassword, proxied: true,
	},
	{
		name: "postgres", proxied: true,
		url: bare(func(t *testing.T) string { return strings.Replace(brokertest.Postgres(t), "sslmode=disable", "", 1) }),
		trust: func(t *testing.T) string {
			return "sslmode=verify-full&sslrootcert=" + url.QueryEscape(certFile(t, "ca.pem"))
		},
		wrong: func(*testing.T) string { return "sslmode=verify-full" },
		certificate: func(t *testing.T) string {
			return "sslcert=" + url.QueryEscape(certFile(t, "client.pem")) + "&sslkey=" + url.QueryEscape(certFile(t, "client.key"))
		},
		setPassword: func(t *testing.T, user, password string) {
			asAdmin(t, "pgx", brokertest.URL(t, "postgres"), []string{"CREATE ROLE " + user + " LOGIN SUPERUSER"},
				"ALTER ROLE "+user+" PASSWORD '"+password+"'")
			t.Cleanup(func() {
				asAdmin(t, "pgx", brokertest.URL(t, "postgres"), []string{"DROP OWNED BY " + user, "DROP ROLE " + user})
			})
		},
	},
	{
		name: "mysql", proxied: true, certificate: caCertKey,
		url:   bare(func(t *testing.T) string { return brokertest.MySQL(t) }),
		trust: func(t *testing.T) string { return "tls=true&" + caFile(t) },
		wrong: func(*testing.T) string { return "tls=true" },
		setPassword: func(t *testing.T, user, password string) {
			at := "'" + user + "'@'127.0.0.1'"
			asAdmin(t, "mysql", brokertest.MySQLDSN(brokertest.URL(t, "mysql")), []string{"CREATE USER " + at},
				"ALTER USER "+at+" IDENTIFIED BY '"+password+"' REQUIRE X509", "GRANT ALL PRIVILEGES ON *.* TO "+at)
			t.Cleanup(func() {
				asAdmin(t, "mysql", brokertest.MySQLDSN(brokertest.URL(t, "mysql")), []string{"DROP USER " + at})
			})
		},
		needed: true,
	},
}

// TestTransport goes the way of a URL to servers that are set up for TLS: the server is verified,
// and so is the client, by a certificate and a password, which changes while the bus is open.
func TestTransport(t *testing.T) {
	for _, broker := range securedBrokers {
		t.Run(broker.name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			user := "u" + strings.ReplaceAll(bus.NewID(), "-", "")
			broker.setPassword(t, user, "first")
			file := filepath.Join(t.TempDir(), "password")
			write(t, file, "first\n")
			server := broker.url(t)
			as := func(params ...string) string {
				return withUser(t, brokertest.With(server, strings.Join(append(params, "passwordfile="+url.QueryEscape(file)), "&")), user)
			}

			begin := time.Now()
			refused(ctx, t, "an unknown authority", as(broker.wrong(t)), "certificate")
			if broker.needed {
				refused(ctx, t, "no certificate", as(broker.trust(t)), "")
			}
			if took := time.Since(begin); took > 20*time.Second {
				t.Errorf("the refusals took %v", took)
			}

			trusted := as(broker.trust(t), broker.certificate(t))
			var p *faults.Proxy
			if broker.proxied {
				p = faults.NewProxy(t, hostOf(t, server))
				trusted = strings.Replace(trusted, hostOf(t, server), p.Address(), 1)
			}
			b, err := bus.Open(ctx, trusted, bus.WithLogger(slog.New(slog.DiscardHandler))) // it tells of the cut
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			topic := "transport-" + bus.NewID()
			roundTrip(ctx, t, b, topic, "g1")

			broker.setPassword(t, user, "second")
			write(t, file, "second\n")
			if p != nil {
				p.Cut()
			}
			roundTrip(ctx, t, b, topic, "g2") // a new subscription has connections of its own
		})
	}
}

// TestCertificateAlone: where the server knows users by their certificates, a URL needs no
// password.
func TestCertificateAlone(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	const user = "millrace-client" // as in the certificate
	admin := brokertest.URL(t, "postgres")
	asAdmin(t, "pgx", admin, []string{`CREATE ROLE "` + user + `" LOGIN SUPERUSER`})
	for _, broker := range securedBrokers {
		if broker.name != "postgres" {
			continue
		}
		b, err := bus.Open(ctx, withUser(t, brokertest.With(broker.url(t), broker.trust(t)+"&"+broker.certificate(t)), user))
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		roundTrip(ctx, t, b, "transport-"+bus.NewID(), "g")
	}
}

// refused opens a bus that the server, or the client, must refuse at once, and looks for want in
// the error.
func refused(ctx context.Context, t *testing.T, why, url, want string) {
	t.Helper()
	b, err := bus.Open(ctx, url)
	if err == nil {
		b.Close()
		t.Errorf("%s: opened", why)
		return
	}
	if bus.IsRetryable(err) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "first") {
		t.Errorf("%s: %v, retryable %v", why, err, bus.IsRetryable(err))
	}
}

// roundTrip publishes a message, and waits for it in a group of its own.
func roundTrip(ctx context.Context, t *testing.T, b *bus.Bus, topic, group string) {
	t.Helper()
	got := make(chan struct{})
	m := &bus.Message{ID: bus.NewID(), Payload: []byte("x")}
	member := router.New(b, group)
	member.HandleFunc(topic, func(_ context.Context, came *bus.Message) error {
		if came.ID == m.ID {
			close(got)
		}
		return nil
	})
	stop := runAll(t, member)
	defer stop(t)
	if err := member.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	publishUntilKnown(ctx, t, b, topic, m)
	select {
	case <-got:
	case <-ctx.Done():
		t.Error("the message does not come")
	}
}

func write(t *testing.T, file, text string) {
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func withoutUser(t *testing.T, rawURL string) string { return withUser(t, rawURL, "") }

func withPassword(t *testing.T, rawURL, user string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(user, "secret")
	return u.String()
}

func withUser(t *testing.T, rawURL, user string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		t.Fatal(err)
	}
	if u.User = nil; user != "" {
		u.User = url.User(user)
	}
	return u.String()
}

// asAdmin runs statements as the user of the tests. Those in may may fail: the second time, what
// they make exists, or is gone.
func asAdmin(t *testing.T, driver, dsn string, may []string, must ...string) {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background() // it is called after the test, too
	for _, statement := range may {
		_, _ = db.ExecContext(ctx, statement)
	}
	for _, statement := range must {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
}

func setKafkaPassword(t *testing.T, user, password string) {
	kafkaAdmin(t, func(ctx context.Context, adm *kadm.Client) error {
		done, err := adm.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{User: user, Mechanism: kadm.ScramSha512, Iterations: 4096, Password: password}})
		if err == nil {
			err = done.Error()
		}
		if err == nil {
			_, err = adm.CreateACLs(ctx, kadm.NewACLs().Allow("User:"+user).AllowHosts().Topics("*").Groups("*").Clusters().TransactionalIDs("*").
				ResourcePatternType(kadm.ACLPatternLiteral).Operations(kadm.OpAll))
		}
		return err
	})
}

func setRabbitMQPassword(t *testing.T, user, password string) {
	if password == "first" {
		brokersCLI(t, "rabbitmq", "add_user", user, password)
		brokersCLI(t, "rabbitmq", "set_permissions", user, ".*", ".*", ".*")
		t.Cleanup(func() { brokersCLI(t, "rabbitmq", "delete_user", user) })
		return
	}
	brokersCLI(t, "rabbitmq", "change_password", user, password)
}

// brokersCLI calls a broker's own client.
func brokersCLI(t *testing.T, args ...string) {
	t.Helper()
	var out bytes.Buffer
	// The test's context has ended when it cleans up.
	cmd := exec.CommandContext(context.Background(), brokertest.Setting(t, "MILLRACE_BROKERS"), append([]string{"cli"}, args...)...) //nolint:gosec // of this repository
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out.String())
	}
}
