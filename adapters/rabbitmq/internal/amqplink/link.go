package amqplink

import (
	"context"
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// Config says how to reach the broker.
type Config struct {
	// Hosts are the nodes of one cluster, as host:port, tried in this order.
	Hosts []string
	// Credentials is called for each connection.
	Credentials func() (user, password string, err error)
	// VHost is the virtual host of the broker.
	VHost string
	// TLS turns TLS on. ServerName defaults to the host that is dialled.
	TLS *tls.Config
	// Name names the connections in RabbitMQ's own tools, with the purpose of each.
	Name string
	// Heartbeat is the interval of signs of life.
	Heartbeat time.Duration
}

// Link is a connection that repairs itself, once it was asked for. Safe for concurrent use.
//
// Publishing and consuming should have one each: under a memory or disk alarm, RabbitMQ stops
// reading from connections that publish, and acks on such a connection would be stuck.
type Link struct {
	cfg     Config
	purpose string
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	ended   chan struct{}

	mu      sync.Mutex
	started bool
	session *Session      // nil while disconnected
	changed chan struct{} // closed when session changes
	err     error         // why it is disconnected
}

// New returns a link that is not connected yet. purpose is shown in RabbitMQ's tools.
func New(cfg Config, purpose string) *Link {
	ctx, cancel := context.WithCancel(context.Background())
	return &Link{cfg: cfg, purpose: purpose, ctx: ctx, cancel: cancel, changed: make(chan struct{}), ended: make(chan struct{})}
}

// Connect makes the first connection, within ctx. A failure that waiting cannot help, such as a
// wrong password, is an error at once.
func (l *Link) Connect(ctx context.Context) error {
	for n := 0; ; n++ {
		s, err := Dial(ctx, l.cfg, l.purpose)
		if err == nil {
			l.start(s)
			return nil
		}
		if !Retryable(err) || !backoff.Sleep(ctx, backoff.Pause(n+1)) {
			return err
		}
	}
}

// start begins the repairing, unless it has begun.
func (l *Link) start(first *Session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started {
		l.started = true
		l.session = first
		go l.repair(first)
	}
}

func (l *Link) repair(s *Session) {
	defer close(l.ended)
	for n := 0; ; {
		if s == nil {
			next, err := Dial(l.ctx, l.cfg, l.purpose)
			if err != nil {
				l.set(nil, err)
				if !backoff.Sleep(l.ctx, backoff.Pause(n+1)) {
					return
				}
				n++
				continue
			}
			s = next
			l.set(s, nil)
		}
		since := time.Now()
		select {
		case <-s.Done:
		case <-l.ctx.Done():
			return // Close ends the session
		}
		l.set(nil, s.Failure())
		s = nil
		// A broker that accepts connections and drops them at once must not be hammered.
		if time.Since(since) > time.Second {
			n = 0
		} else if n++; !backoff.Sleep(l.ctx, backoff.Pause(n)) {
			return
		}
	}
}

func (l *Link) set(s *Session, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session, l.err = s, err
	close(l.changed)
	l.changed = make(chan struct{})
}

// Get returns the session, or waits for one until ctx ends. The first Get connects.
func (l *Link) Get(ctx context.Context) (*Session, error) {
	l.start(nil)
	for {
		l.mu.Lock()
		s, changed, cause := l.session, l.changed, l.err
		l.mu.Unlock()
		if l.ctx.Err() != nil {
			return nil, bus.ErrClosed
		}
		if s != nil && !s.Conn.IsClosed() {
			return s, nil
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return nil, bus.ErrClosed
		case <-ctx.Done():
			if cause != nil {
				// The cause does not decide whether the call may be tried again: a link that has
				// been connected goes on trying.
				return nil, fmt.Errorf("no connection: %w (the last try: %s)", context.Cause(ctx), cause.Error())
			}
			return nil, fmt.Errorf("no connection: %w", context.Cause(ctx))
		}
	}
}

// Current returns the session, or nil.
func (l *Link) Current() *Session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session
}

// Failure returns why there is no session, or nil.
func (l *Link) Failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// Used reports whether the link has ever been asked for a session.
func (l *Link) Used() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started
}

// Stop ends the repairing, and the waiting for a session. The session goes on.
func (l *Link) Stop() { l.cancel() }

// Close ends the link. The broker has until ctx ends to answer.
func (l *Link) Close(ctx context.Context) {
	l.Stop()
	l.mu.Lock()
	started := l.started
	l.started = true // no start from here on
	l.mu.Unlock()
	if !started {
		return
	}
	<-l.ended
	s := l.Current()
	if s == nil {
		return
	}
	deadline, ok := ctx.Deadline()
	if !ok || time.Until(deadline) > 5*time.Second {
		deadline = time.Now().Add(5 * time.Second)
	}
	_ = s.Conn.CloseDeadline(deadline) // it is closed in any case
	<-s.Done
}

// Blocked reports whether the broker blocks publishers now.
func (l *Link) Blocked() bool {
	s := l.Current()
	return s != nil && s.BlockedBy() != ""
}

// GetUnblocked is Get for publishing: it also waits while the broker blocks publishers.
func (l *Link) GetUnblocked(ctx context.Context) (*Session, error) {
	for {
		s, err := l.Get(ctx)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		flowing, reason := s.flowing, s.reason
		s.mu.Unlock()
		if flowing == nil {
			return s, nil
		}
		select {
		case <-flowing:
		case <-s.Done:
		case <-l.ctx.Done():
		case <-ctx.Done():
			return nil, fmt.Errorf("the broker blocks publishers (%s): %w", reason, context.Cause(ctx))
		}
	}
}
