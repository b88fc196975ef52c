package all_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/brokertest"
	"github.com/millrace-go/millrace/poison"
	"github.com/millrace-go/millrace/router"
)

// privileged is a broker whose privileges docs/security.md states.
type privileged struct {
	name      string
	guarantee router.Level
	// rules splits the page's block into what can be left out, one by one.
	rules func(block string) []string
	// prepare makes the topic, and a user without any right, and returns the user's URL.
	prepare func(t *testing.T, p *place) (url string)
	// grant gives the rights of the rules.
	grant func(t *testing.T, p *place, rules []string)
	// refused is the text by which the server's errors refuse.
	refused string
}

// place are the names of a test's own, in place of those of the page.
type place struct{ user, topic, group, schema, url string }

func newPlace() *place {
	tag := strings.ReplaceAll(bus.NewID(), "-", "")
	return &place{user: "u" + tag, topic: "t" + tag, group: "g" + tag}
}

var lines = func(block string) []string { return strings.Split(strings.TrimSpace(block), "\n") }

var privilegedBrokers = []privileged{
	{
		name: "postgres", guarantee: router.ExactlyOnce, rules: eachPrivilege, refused: "permission denied for",
		prepare: func(t *testing.T, p *place) string {
			p.url = brokertest.Postgres(t)
			_, schema, _ := strings.Cut(p.url, "schema=")
			p.schema = schema
			makeTopic(t, p)
			admin := brokertest.URL(t, "postgres")
			asAdmin(t, "pgx", admin, nil, "CREATE ROLE "+p.user+" LOGIN PASSWORD 'secret'")
			t.Cleanup(func() { asAdmin(t, "pgx", admin, nil, "DROP OWNED BY "+p.user, "DROP ROLE "+p.user) })
			return withPassword(t, brokertest.With(p.url, "migrate=false"), p.user)
		},
		grant: func(t *testing.T, p *place, rules []string) {
			for _, rule := range rules {
				rule = strings.NewReplacer("millrace", p.schema, "service", p.user).Replace(rule)
				asAdmin(t, "pgx", brokertest.URL(t, "postgres"), nil, rule)
			}
		},
	},
	{
		name: "mysql", guarantee: router.ExactlyOnce, rules: eachPrivilege, refused: "denied to user",
		prepare: func(t *testing.T, p *place) string {
			p.url = brokertest.MySQL(t)
			makeTopic(t, p)
			admin, user := brokertest.MySQLDSN(brokertest.URL(t, "mysql")), "'"+p.user+"'@'127.0.0.1'"
			asAdmin(t, "mysql", admin, nil, "CREATE USER "+user+" IDENTIFIED BY 'secret'")
			t.Cleanup(func() { asAdmin(t, "mysql", admin, nil, "DROP USER "+user) })
			return withPassword(t, brokertest.With(p.url, "migrate=false"), p.user)
		},
		grant: func(t *testing.T, p *place, rules []string) {
			for _, rule := range rules {
				asAdmin(t, "mysql", brokertest.MySQLDSN(brokertest.URL(t, "mysql")), nil, strings.Replace(rule, "'service'", "'"+p.user+"'", 1))
			}
		},
	},
	{
		name: "rabbitmq", guarantee: router.AtLeastOnce, rules: expressions, refused: "ACCESS_REFUSED",
		prepare: func(t *testing.T, p *place) string {
			p.url = brokertest.URL(t, "rabbitmq")
			brokersCLI(t, "rabbitmq", "add_user", p.user, "secret")
			t.Cleanup(func() { brokersCLI(t, "rabbitmq", "delete_user", p.user) })
			return withPassword(t, p.url, p.user)
		},
		grant: func(t *testing.T, p *place, rules []string) {
			args := []string{"rabbitmq", "set_permissions", p.user}
			for _, rule := range rules {
				args = append(args, strings.NewReplacer("orders", p.topic, "billing", p.group).Replace(rule))
			}
			brokersCLI(t, args...)
		},
	},
	{
		name: "kafka", guarantee: router.ExactlyOnce, rules: lines, refused: "AUTHORIZATION_FAILED",
		prepare: func(t *testing.T, p *place) string {
			p.url = brokertest.URL(t, "kafka")
			makeTopic(t, p)
			kafkaAdmin(t, func(ctx context.Context, adm *kadm.Client) error {
				_, err := adm.AlterUserSCRAMs(ctx, nil, []kadm.UpsertSCRAM{{User: p.user, Mechanism: kadm.ScramSha512, Iterations: 4096, Password: "secret"}})
				return err
			})
			return withPassword(t, brokertest.With(brokertest.URL(t, "kafka_tls"), caFile(t)+"&"+caCertKey(t)), p.user)
		},
		grant: grantKafka,
	},
}

// TestLeastPrivileges: with the rights that docs/security.md names everything works, and without
// one of them the error says so.
func TestLeastPrivileges(t *testing.T) {
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, broker := range privilegedBrokers {
		m := regexp.MustCompile("(?s)```[a-z]+ " + broker.name + "\n(.*?)```").FindSubmatch(page)
		if m == nil {
			t.Fatalf("the page has no block for %s", broker.name)
		}
		rules := broker.rules(string(m[1]))
		t.Run(broker.name, func(t *testing.T) {
			t.Parallel()
			for missing := -1; missing < len(rules); missing++ {
				given, name := slices.Clone(rules), "all"
				if missing >= 0 {
					name = "without " + rules[missing]
					if given = slices.Delete(given, missing, missing+1); broker.name == "rabbitmq" {
						given = slices.Insert(given, missing, "^$")
					}
				}
				t.Run(name, func(t *testing.T) {
					p := newPlace()
					url := broker.prepare(t, p)
					broker.grant(t, p, given)
					err := useEverything(t, url, p, broker.guarantee, broker.refused)
					if missing < 0 && err != nil {
						t.Error(err)
					}
					if missing >= 0 && (err == nil || !strings.Contains(err.Error(), broker.refused)) {
						t.Errorf("the error does not say what is missing: %v", err)
					}
				})
			}
		})
	}
}

// useEverything opens a bus, and has a message handled, another one parked until it is due, and a
// third poisoned and replayed. It gives up when the log has said that something was refused.
func useEverything(t *testing.T, url string, p *place, guarantee router.Level, refused string) error {
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Second)
	defer cancel()
	told := &complaints{enough: refused, stop: cancel}
	b, err := bus.Open(ctx, url, bus.WithLogger(slog.New(slog.NewTextHandler(told, &slog.HandlerOptions{Level: slog.LevelWarn}))))
	if err != nil {
		return err
	}
	defer b.Close()
	done := make(chan string, 3)
	var poisoned atomic.Bool
	member := router.New(b, p.group, router.DrainTimeout(time.Second))
	member.HandleFunc(p.topic, func(ctx context.Context, m *bus.Message) error {
		switch {
		case m.ID == "later" && bus.DeliveryFrom(ctx).Attempt == 1:
			return bus.RetryAfter(errors.New("not yet"), 1100*time.Millisecond)
		case m.ID == "poison" && poisoned.CompareAndSwap(false, true):
			return bus.Permanent(errors.New("no"))
		}
		if m.ID != "first" {
			done <- m.ID
		}
		return nil
	}, router.Guarantee(guarantee))
	runCtx, stop := context.WithCancel(ctx)
	over := make(chan error, 1)
	go func() { over <- member.Run(runCtx) }()
	err = func() error {
		if err := member.Ready(ctx); err != nil {
			return err
		}
		for _, id := range []string{"now", "later", "poison"} {
			if err := b.PublishMessages(ctx, p.topic, &bus.Message{ID: id, Key: id}); err != nil {
				return err
			}
		}
		q, err := poison.Open(ctx, b, p.group)
		if err != nil {
			return err
		}
		for replayed := 0; replayed == 0; {
			r, err := q.Replay(ctx, poison.Filter{}, poison.Options{})
			if err != nil {
				return err
			}
			replayed = r.Done
		}
		for range 3 {
			select {
			case <-done:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}()
	if err != nil {
		err = errors.Join(err, member.Health().Err())
	}
	stop()
	if runErr := <-over; err != nil {
		err = errors.Join(err, runErr)
	}
	if err != nil {
		err = fmt.Errorf("%w\nlog:\n%s", err, told)
	}
	return err
}

// complaints is a log that calls stop when it has enough.
type complaints struct {
	enough string
	stop   func()
	mu     sync.Mutex
	text   strings.Builder
}

func (c *complaints) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if strings.Contains(string(p), c.enough) {
		c.stop()
	}
	return c.text.Write(p)
}

func (c *complaints) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// eachPrivilege makes a statement for each privilege in a GRANT.
func eachPrivilege(block string) []string {
	var out []string
	for _, statement := range lines(block) {
		privileges, rest, _ := strings.Cut(strings.TrimPrefix(statement, "GRANT "), " ON ")
		for privilege := range strings.SplitSeq(privileges, ", ") {
			out = append(out, "GRANT "+privilege+" ON "+strings.TrimSuffix(rest, ";"))
		}
	}
	return out
}

// expressions are the three of set_permissions.
func expressions(block string) []string {
	var out []string
	for _, m := range regexp.MustCompile("'([^']*)'").FindAllStringSubmatch(block, -1) {
		out = append(out, m[1])
	}
	return out
}

// makeTopic has the operator make the tables and the topic.
func makeTopic(t *testing.T, p *place) {
	b, err := bus.Open(t.Context(), p.url)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := b.PublishMessages(t.Context(), p.topic, &bus.Message{ID: "first"}); err != nil {
		t.Fatal(err)
	}
}

func grantKafka(t *testing.T, p *place, rules []string) {
	names := strings.NewReplacer("7.billing", fmt.Sprintf("%d.%s", len(p.group), p.group), "orders", p.topic, "billing", p.group)
	for _, rule := range rules {
		f := strings.Fields(names.Replace(rule))
		operation, ok := map[string]kadm.ACLOperation{"All": kadm.OpAll, "Read": kadm.OpRead, "Write": kadm.OpWrite}[f[0]]
		if !ok {
			t.Fatalf("operation %q", f[0])
		}
		pattern := kadm.ACLPatternLiteral
		if f[2] == "prefixed" {
			pattern = kadm.ACLPatternPrefixed
		}
		acl := kadm.NewACLs().Allow("User:" + p.user).AllowHosts().ResourcePatternType(pattern).Operations(operation)
		switch f[1] {
		case "topic":
			acl.Topics(f[3])
		case "group":
			acl.Groups(f[3])
		case "transactional-id":
			acl.TransactionalIDs(f[3])
		default:
			t.Fatalf("resource %q", f[1])
		}
		kafkaAdmin(t, func(ctx context.Context, adm *kadm.Client) error {
			_, err := adm.CreateACLs(ctx, acl)
			return err
		})
	}
}

func kafkaAdmin(t *testing.T, do func(context.Context, *kadm.Client) error) {
	t.Helper()
	c, err := kgo.NewClient(kgo.SeedBrokers(hostOf(t, brokertest.URL(t, "kafka"))))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := do(t.Context(), kadm.NewClient(c)); err != nil {
		t.Fatal(err)
	}
}
