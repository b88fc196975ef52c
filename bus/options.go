package bus

import (
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Option configures a Bus.
type Option func(*options)

type options struct {
	source         string
	codecs         []Codec
	logger         *slog.Logger
	closeTimeout   time.Duration
	connectTimeout time.Duration
	inbox          string
}

func newOptions(opts []Option) options {
	o := options{
		source:         "/" + filepath.Base(os.Args[0]),
		codecs:         []Codec{JSON},
		logger:         slog.Default(),
		closeTimeout:   10 * time.Second,
		connectTimeout: 15 * time.Second,
	}
	for _, opt := range opts {
		opt(&o)
	}
	if o.logger == nil {
		o.logger = slog.New(slog.DiscardHandler)
	}
	return o
}

// WithSource sets the Source of messages that have none. Defaults to "/" and the program's name.
func WithSource(s string) Option { return func(o *options) { o.source = s } }

// WithCodecs sets the codecs. The first encodes published events. All decode, chosen by content
// type. Defaults to [JSON], which always stays available for decoding.
func WithCodecs(c ...Codec) Option {
	return func(o *options) { o.codecs = append(append([]Codec(nil), c...), JSON) }
}

// WithLogger sets the log for background events. Defaults to [slog.Default] at the time when the bus
// is opened; nil turns it off. No payload, key or password is logged.
func WithLogger(l *slog.Logger) Option { return func(o *options) { o.logger = l } }

// WithCloseTimeout bounds Close. Defaults to 10 s.
func WithCloseTimeout(d time.Duration) Option { return func(o *options) { o.closeTimeout = d } }

// WithConnectTimeout bounds Open. Defaults to 15 s.
func WithConnectTimeout(d time.Duration) Option { return func(o *options) { o.connectTimeout = d } }

// WithInbox names the inbox of this bus: the topic, and its group, for replies to requests
// ([Request]). No other open bus may use the same name. Defaults to a new name for each bus:
// "replies-" and an id. Choose a name that begins with "replies-", such as "replies-billing-7": handlers
// of [Reply] answer to other topics only if their router allows it by name (router.ReplyTo).
func WithInbox(name string) Option { return func(o *options) { o.inbox = name } }
