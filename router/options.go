package router

import (
	"fmt"
	"log/slog"
	"time"

	"github.com/millrace-go/millrace/bus"
)

// RootOption is an option for New only. Every Option is one too.
type RootOption interface{ root(*core, *settings) }

// Option is for New, Group, With and every handler: the innermost wins.
type Option interface {
	RootOption
	apply(*settings)
}

// setting is a value and how deep in the nesting it was set. The settings of a subscription
// (Workers, InFlight, From, Unordered, Guarantee) are shared by the handlers of one topic and group.
// So the deepest wins, and two different values of one depth are a conflict.
type setting[T comparable] struct {
	value T
	depth int
}

type inFlight struct{ messages, bytes int }

type settings struct {
	depth int

	name    string
	timeout time.Duration
	accept  []string
	policy  Policy
	use     []bus.Middleware
	fill    fill

	workers   setting[int]
	inFlight  setting[inFlight]
	from      setting[bus.Start]
	unordered setting[bool]

	replyTo     []string // topics that get replies, beside inboxes
	skip        []string // of a subscription, too: those of all its handlers
	skipUnknown bool     // if one of its handlers says so
	skipNothing bool     // a Skip names no type
	guarantee   setting[Level]
}

type fill struct {
	n    int
	wait time.Duration
}

// Defaults of the options.
const (
	DefaultWorkers       = 16
	DefaultInFlight      = 2048
	DefaultInFlightBytes = 32 << 20
	DefaultDrainTimeout  = 30 * time.Second
	DefaultFill          = 100
)

func defaults() settings {
	return settings{
		policy:   Policy{}.withDefaults(),
		fill:     fill{n: DefaultFill},
		workers:  setting[int]{value: DefaultWorkers},
		inFlight: setting[inFlight]{value: inFlight{DefaultInFlight, DefaultInFlightBytes}},
	}
}

// with returns s with the options applied one level deeper.
func (s settings) with(opts []Option) settings {
	s.depth++
	s.use = s.use[:len(s.use):len(s.use)]
	s.name = ""
	for _, o := range opts {
		o.apply(&s)
	}
	return s
}

type option func(*settings)

func (o option) apply(s *settings)         { o(s) }
func (o option) root(_ *core, s *settings) { o(s) }

type rootOption func(*core)

func (o rootOption) root(c *core, _ *settings) { o(c) }

// DrainTimeout bounds how long Run waits for running handlers when it ends; then their contexts are cancelled.
// Defaults to 30 s.
func DrainTimeout(d time.Duration) RootOption {
	return rootOption(func(c *core) { c.drainTimeout = d })
}

// Logger sets the log. Defaults to the bus's log. The log tells of a handler's failing messages at
// most once a second for each class of failure, with the number of those left out. Note: the router
// logs with locks held, so the log's handler must not wait for the router or for the bus.
func Logger(l *slog.Logger) RootOption { return rootOption(func(c *core) { c.log = l }) }

// Hooks adds observers: values that implement one or more of [HandledHook], [PoisonedHook]
// and [SkippedHook].
func Hooks(hooks ...any) RootOption {
	return rootOption(func(c *core) { c.hooks.add(hooks) })
}

// Name names a handler, in logs, health and poison entries, which find their handler by it. Defaults to
// group/topic/type, or group/topic for a handler of all types.
func Name(n string) Option { return option(func(s *settings) { s.name = n }) }

// Workers is the number of handler calls that run at once, for a topic and group in this process. Defaults to 16.
func Workers(n int) Option {
	return option(func(s *settings) { s.workers = setting[int]{n, s.depth} })
}

// InFlight bounds the messages of a topic and group that are received and not yet settled, by number and by bytes
// ([bus.Message.Size]); one message may exceed the bytes. Defaults to 2,048 and 32 MiB.
func InFlight(messages, bytes int) Option {
	return option(func(s *settings) { s.inFlight = setting[inFlight]{inFlight{messages, bytes}, s.depth} })
}

// Timeout bounds each call of a handler: its context ends. 0, the default, is no bound.
func Timeout(d time.Duration) Option { return option(func(s *settings) { s.timeout = d }) }

// From is where a group starts that the topic has not seen before. Defaults to [bus.Earliest].
func From(start bus.Start) Option {
	return option(func(s *settings) { s.from = setting[bus.Start]{start, s.depth} })
}

// Unordered gives up the order of equal keys, for more concurrency.
func Unordered() Option {
	return option(func(s *settings) { s.unordered = setting[bool]{true, s.depth} })
}

// Skip names types of messages that the group does not want: they are settled unhandled. They are
// counted ([RouteHealth]) and told to a [SkippedHook]. Without it a message of a type that no handler
// of the topic and group takes goes to the poison queue, with the class "unknown type". "" names
// messages without a type.
//
// Several Skips add up, and those of one handler hold for all that share its topic and group. A type
// that is named beside a handler of all types does not come to this handler. A type with a handler
// of its own cannot be named.
//
// A message that a handler of the group has had already, or that was replayed, is not skipped: it
// goes to the poison queue.
func Skip(types ...string) Option {
	return option(func(s *settings) {
		if len(types) == 0 {
			s.skipNothing = true
		}
		s.skip = append(s.skip[:len(s.skip):len(s.skip)], types...)
	})
}

// SkipUnknown is [Skip] for every type that no handler of the topic and group takes. It is for groups
// that want some types of many. The log warns of each type once. A message without a type is not
// skipped.
//
// Note: in a rolling update the old version of a service settles messages that are for the new one.
// Deploy handlers of a new type before its publishers (docs/event-versions.md).
func SkipUnknown() Option { return option(func(s *settings) { s.skipUnknown = true }) }

// ReplyTo allows handlers made by [bus.Reply] to answer to these topics, too. By default they answer to
// inboxes only (topics whose names begin with "replies-"), and a request for a reply elsewhere fails
// for good. Several ReplyTos add up.
func ReplyTo(topics ...string) Option {
	return option(func(s *settings) { s.replyTo = append(s.replyTo[:len(s.replyTo):len(s.replyTo)], topics...) })
}

// Guarantee says what a crash may do to the messages of a topic and group. Defaults to
// [AtLeastOnce]. A guarantee that cannot be kept is an error at the start, which names the missing
// requirement.
func Guarantee(l Level) Option {
	return option(func(s *settings) { s.guarantee = setting[Level]{l, s.depth} })
}

// Level is a delivery guarantee.
type Level int8

const (
	// AtLeastOnce settles a message once it is handled and the messages that the handler emitted
	// are published. After a crash messages are handled again, with the same id.
	AtLeastOnce Level = iota
	// AtMostOnce settles each message, durably, before its handler is called: no message is handled
	// by two processes. Messages being handled when the process dies are lost, as are those that
	// wait for a retry when it ends. Each call first costs a round trip to the broker, which calls
	// that begin together share: it takes more workers.
	AtMostOnce
	// ExactlyOnce has the effect of each message happen once. It can be had in two ways. On a bus
	// whose broker has transactions (Kafka, PostgreSQL, MySQL/MariaDB, SQLite), one transaction
	// settles the handled messages and publishes the messages that their handlers emit. After a
	// crash a handler is called again, and the messages it emitted before were never published.
	// This covers only the emitted messages, no other effect of a handler. On any bus, handlers
	// that are [bus.Idempotent] provide it: those of outbox.Once have their effect in their own
	// database. Those of outbox.OnceInBus have both in one transaction. At most 512 messages are in
	// flight.
	ExactlyOnce
)

func (l Level) String() string {
	switch l {
	case AtLeastOnce:
		return "at least once"
	case AtMostOnce:
		return "at most once"
	case ExactlyOnce:
		return "exactly once"
	default:
		return fmt.Sprintf("Level(%d)", int8(l))
	}
}

// Accept sets the message types that a handler takes, instead of its own.
func Accept(types ...string) Option { return option(func(s *settings) { s.accept = types }) }

// Use adds middleware, inside the middleware that was added further out.
func Use(mw ...bus.Middleware) Option {
	return option(func(s *settings) { s.use = append(s.use, mw...) })
}

// Fill is for batch handlers: a call gets up to n messages, and waits up to wait for that many. Defaults to 100 and
// 0: whatever is there.
func Fill(n int, wait time.Duration) Option {
	return option(func(s *settings) { s.fill = fill{n, wait} })
}
