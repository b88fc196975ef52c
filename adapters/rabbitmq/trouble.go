package rabbitmq

import (
	"fmt"
	"time"
)

// troublePatience is how long something must have failed before Receive tells of it. A failure that
// is repaired sooner needs nobody's attention.
const (
	troublePatience = time.Second
	// calmAfter is how long a lane has been registered when it is in no trouble any more.
	calmAfter = troublePatience / 4
)

// spot is a place that may be in trouble: a lane, by its number, or one of these.
type spot int32

const (
	// connection is the connection that consumes.
	connection spot = -1 - iota
	// setup is the objects that the topic and the group need at the broker.
	setup
	// ownTraffic is the messages that the driver publishes for itself.
	ownTraffic
	// deliveryLimit is the delivery limit of the group's queues.
	deliveryLimit
	// kept is the queue of messages that came to the topic while it had no group to take them.
	kept
	// counting is the count of the group's members.
	counting
)

func (p spot) String() string {
	switch p {
	case connection:
		return "no connection to consume on"
	case setup:
		return "the topic or the group cannot be set up"
	case ownTraffic:
		return "lanes cannot be woken"
	case deliveryLimit:
		return "what is parked may be lost"
	case kept:
		return "what the topic kept cannot be moved"
	case counting:
		return "the members cannot be counted, and share the lanes as they come"
	default:
		return fmt.Sprintf("lane %d cannot be consumed", int32(p))
	}
}

// trouble is why something does not work, until it does.
type trouble struct {
	err   error
	since time.Time
}

// troubled notes that something fails. Receive returns it when it has lasted.
func (s *source) troubled(at spot, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.troubles[at]
	if !ok {
		t.since = time.Now()
		time.AfterFunc(troublePatience, s.wake)
	}
	t.err = err
	s.troubles[at] = t
}

// healed notes that something works again.
func (s *source) healed(at spot) {
	s.mu.Lock()
	_, was := s.troubles[at]
	delete(s.troubles, at)
	s.mu.Unlock()
	if was {
		s.wake()
	}
}

// news returns the news to tell: a trouble, once, or that there is none any more.
func (s *source) news() (err error, changed bool) { //nolint:revive // the error is no failure of news
	s.mu.Lock()
	defer s.mu.Unlock()
	var worst spot
	found := 0
	for at, t := range s.troubles {
		if time.Since(t.since) < troublePatience {
			continue
		}
		if found == 0 || at < 0 && (worst >= 0 || at > worst) || at >= 0 && worst >= 0 && at < worst {
			worst = at
		}
		found++
	}
	switch {
	case found == 0 && len(s.troubles) > 0: // too young to tell of, and not well either
		return nil, false
	case found == 0:
		changed, s.told = s.told, false
		return nil, changed
	case s.told && s.toldOf == min(worst, 0):
		return nil, false
	}
	s.told, s.toldOf = true, min(worst, 0)
	err = s.troubles[worst].err
	if worst == connection {
		if why := s.d.consume.Failure(); why != nil {
			err = why
		}
	}
	if found > 1 {
		return fmt.Errorf("%v: %w (and %d more)", worst, err, found-1), true
	}
	return fmt.Errorf("%v: %w", worst, err), true
}
