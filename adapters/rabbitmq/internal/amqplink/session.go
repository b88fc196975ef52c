package amqplink

import (
	"cmp"
	"errors"
	"sync"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Session is one connection, from its opening to its end.
type Session struct {
	// Conn is the client library's connection.
	Conn *amqp.Connection
	// Done is closed when the connection has ended.
	Done <-chan struct{}

	mu      sync.Mutex
	cause   error         // why it has ended
	flowing chan struct{} // open while the broker blocks publishers, nil otherwise
	reason  string        // why it blocks them
}

func newSession(conn *amqp.Connection) *Session {
	done := make(chan struct{})
	s := &Session{Conn: conn, Done: done}
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
				close(done)
				return
			}
		}
	}()
	return s
}

// Failure returns why the connection has ended, or nil.
func (s *Session) Failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cause
}

func (s *Session) block(b amqp.Blocking) {
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

// BlockedBy returns why the broker blocks publishers, or "" if it does not.
func (s *Session) BlockedBy() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flowing == nil {
		return ""
	}
	return cmp.Or(s.reason, "without a reason")
}
