package rabbitmq

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// link is a connection that repairs itself. Publishing and consuming have one each: under a memory
// or disk alarm, RabbitMQ stops reading from connections that publish, and acks on such a
// connection would be stuck.
type link struct {
	cfg     Config
	purpose string
	ctx     context.Context // ends with close
	cancel  context.CancelFunc
	ended   chan struct{}

	mu      sync.Mutex
	started bool
	session *session      // nil while disconnected
	changed chan struct{} // closed when session changes
	err     error         // why it is disconnected
}

// session is one connection of a link, from its opening to its end.
type session struct {
	conn *amqp.Connection
	done chan struct{} // closed when the connection has ended
	// lanes is how many lanes groups had when that was last asked: where to look first.
	lanes sync.Map

	mu      sync.Mutex
	cause   error         // why it has ended
	flowing chan struct{} // open while the broker blocks publishers, nil otherwise
	reason  string        // why it blocks them
}

// frameSize is the frame size that the client asks for, and RabbitMQ's own default.
const frameSize = 128 << 10

func newLink(cfg Config, purpose string) *link {
	ctx, cancel := context.WithCancel(context.Background())
	return &link{cfg: cfg, purpose: purpose, ctx: ctx, cancel: cancel, changed: make(chan struct{}), ended: make(chan struct{})}
}

// connect makes the first connection, within ctx. A failure that waiting cannot help, such as a
// wrong password, is an error at once.
func (l *link) connect(ctx context.Context) error {
	for n := 0; ; n++ {
		conn, err := l.dial(ctx)
		if err == nil {
			l.start(newSession(conn))
			return nil
		}
		if !retryable(err) || !backoff.Sleep(ctx, backoff.Pause(n+1)) {
			return err
		}
	}
}

// start begins the repairing, unless it has begun.
func (l *link) start(first *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.started {
		l.started = true
		l.session = first
		go l.repair(first)
	}
}

func (l *link) repair(s *session) {
	defer close(l.ended)
	for n := 0; ; {
		if s == nil {
			conn, err := l.dial(l.ctx)
			if err != nil {
				l.set(nil, err)
				if !backoff.Sleep(l.ctx, backoff.Pause(n+1)) {
					return
				}
				n++
				continue
			}
			s = newSession(conn)
			l.set(s, nil)
		}
		since := time.Now()
		select {
		case <-s.done:
		case <-l.ctx.Done():
			return // close ends the session
		}
		l.set(nil, s.failure())
		s = nil
		// A broker that accepts connections and drops them at once must not be hammered.
		if time.Since(since) > time.Second {
			n = 0
		} else if n++; !backoff.Sleep(l.ctx, backoff.Pause(n)) {
			return
		}
	}
}

func (l *link) set(s *session, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session, l.err = s, err
	close(l.changed)
	l.changed = make(chan struct{})
}

// get returns the session, or waits for one until ctx ends. The first get connects.
func (l *link) get(ctx context.Context) (*session, error) {
	l.start(nil)
	for {
		l.mu.Lock()
		s, changed, cause := l.session, l.changed, l.err
		l.mu.Unlock()
		if l.ctx.Err() != nil {
			return nil, bus.ErrClosed
		}
		if s != nil && !s.conn.IsClosed() {
			return s, nil
		}
		select {
		case <-changed:
		case <-l.ctx.Done():
			return nil, bus.ErrClosed
		case <-ctx.Done():
			if cause != nil {
				return nil, fmt.Errorf("no connection: %w (the last try: %w)", context.Cause(ctx), cause)
			}
			return nil, fmt.Errorf("no connection: %w", context.Cause(ctx))
		}
	}
}

// current returns the session, or nil.
func (l *link) current() *session {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.session
}

// failure is why there is no session, or nil.
func (l *link) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// used says whether the link has ever been asked for a session.
func (l *link) used() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.started
}

// stop ends the repairing, and the waiting for a session. The session goes on.
func (l *link) stop() { l.cancel() }

// close ends the link. The broker has until ctx ends to answer.
func (l *link) close(ctx context.Context) {
	l.stop()
	l.mu.Lock()
	started := l.started
	l.started = true // no start from here on
	l.mu.Unlock()
	if !started {
		return
	}
	<-l.ended
	s := l.current()
	if s == nil {
		return
	}
	deadline, ok := ctx.Deadline()
	if !ok || time.Until(deadline) > 5*time.Second {
		deadline = time.Now().Add(5 * time.Second)
	}
	_ = s.conn.CloseDeadline(deadline) // it is closed in any case
	<-s.done
}

// dial tries the hosts in turn.
func (l *link) dial(ctx context.Context) (*amqp.Connection, error) {
	var errs []error
	for _, host := range l.cfg.Hosts {
		conn, err := l.dialHost(ctx, host)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", host, err))
		if !retryable(err) {
			return nil, errs[len(errs)-1] // a wrong password is wrong on the other nodes of the cluster too
		}
	}
	return nil, errors.Join(errs...)
}

// dialHost bounds each host, so that a host that does not answer leaves time for the others.
func (l *link) dialHost(ctx context.Context, host string) (*amqp.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	if l.cfg.TLS != nil {
		c := l.cfg.TLS.Clone()
		if c.ServerName == "" {
			c.ServerName, _, _ = net.SplitHostPort(host)
		}
		client := tls.Client(conn, c)
		if err := client.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		conn = client
	}
	p := newPipe(conn)
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // the AMQP handshake knows no context
	defer stop()
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(l.cfg.Name + " " + l.purpose)
	c, err := amqp.Open(p, amqp.Config{
		SASL:       []amqp.Authentication{&amqp.PlainAuth{Username: l.cfg.User, Password: l.cfg.Password}},
		Vhost:      l.cfg.VHost,
		FrameSize:  frameSize,
		Heartbeat:  l.cfg.Heartbeat,
		Properties: properties,
		Locale:     "en_US",
	})
	if err == nil && !stop() {
		err = ctx.Err() // too late: the connection is closed already, or about to be
	}
	if err != nil {
		p.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return nil, err
	}
	return c, nil
}

func newSession(conn *amqp.Connection) *session {
	s := &session{conn: conn, done: make(chan struct{})}
	closes := conn.NotifyClose(make(chan *amqp.Error, 1))
	blocks := conn.NotifyBlocked(make(chan amqp.Blocking, 4))
	go func() {
		for {
			select {
			case b, ok := <-blocks:
				if !ok {
					blocks = nil
					continue
				}
				s.block(b)
			case err := <-closes: // nil when it was closed from here
				s.mu.Lock()
				s.cause = errors.New("connection closed")
				if err != nil {
					s.cause = err
				}
				s.mu.Unlock()
				close(s.done)
				return
			}
		}
	}()
	return s
}

func (s *session) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

func (s *session) block(b amqp.Blocking) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case b.Active && s.flowing == nil:
		s.flowing, s.reason = make(chan struct{}), b.Reason
	case !b.Active && s.flowing != nil:
		close(s.flowing)
		s.flowing = nil
	}
}

// blocked says whether the broker blocks publishers now.
func (l *link) blocked() bool {
	s := l.current()
	return s != nil && s.blockedBy() != ""
}

// blockedBy is why the broker blocks publishers, or "" if it does not.
func (s *session) blockedBy() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flowing == nil {
		return ""
	}
	return cmp.Or(s.reason, "for a reason that it does not tell")
}

// getUnblocked is get for publishing: it also waits while the broker blocks publishers.
func (l *link) getUnblocked(ctx context.Context) (*session, error) {
	for {
		s, err := l.get(ctx)
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
		case <-s.done:
		case <-l.ctx.Done():
		case <-ctx.Done():
			return nil, fmt.Errorf("the broker blocks publishers (%s): %w", reason, context.Cause(ctx))
		}
	}
}

// call runs f with a channel of its own, in a goroutine of its own, and waits for it within ctx: no
// request of the client library heeds a context. When ctx ends first, f ends with the broker's
// answer or with the session.
func call[T any](ctx context.Context, s *session, f func(ctx context.Context, t *topology) (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		t := &topology{session: s}
		defer t.close()
		v, err := f(ctx, t)
		done <- result{v, err}
	}()
	select {
	case r := <-done:
		return r.v, r.err
	case <-ctx.Done():
		var zero T
		return zero, fmt.Errorf("waiting for the broker's answer: %w", context.Cause(ctx))
	}
}
