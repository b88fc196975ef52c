package outbox

import (
	"time"

	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/backoff"
)

// failingTopic is a topic with so many blocked lanes that it is claimed by itself, little by
// little. So it keeps no other topic waiting. The broker refuses the topic or one of its
// partitions.
type failingTopic struct {
	lanes int       // blocked ones
	calls int       // under way
	tries int       // claims of a topic with maxTried blocked lanes, since a message was published
	until time.Time // nothing is claimed before
}

const (
	// maxBlocked blocked lanes of a topic make it a failing topic.
	maxBlocked = 1000
	// From maxTried blocked keys on, no new key is tried.
	maxTried = 5000
	// maxDue is the number of lanes that a claim tries again, and for a failing topic the least
	// number of new lanes.
	maxDue       = 100
	failingPause = 100 * time.Millisecond
)

// look forgets blocks a minute past their time, and finds the failing topics.
func (p *pump) look() {
	p.Relay.blocked.Store(int64(len(p.blocked)))
	if len(p.blocked)+len(p.failing) == 0 {
		return
	}
	now := time.Now()
	lanes := map[string]int{}
	for id, b := range p.blocked {
		if now.Sub(b.until) > time.Minute { // the row has gone another way
			delete(p.blocked, id)
			continue
		}
		lanes[b.topic]++
	}
	for topic, n := range lanes {
		switch c := p.failing[topic]; {
		case c != nil:
			c.lanes = n
		case n >= maxBlocked && driver.CheckName("topic", topic) == nil: // an invalid name must not get into a statement
			p.failing[topic] = &failingTopic{lanes: n}
			p.bus.Logger().Error("outbox: messages of many keys of a topic cannot be published: the relay tries few keys at a time", "topic", topic, "keys", n)
		}
	}
	for topic := range p.failing {
		if lanes[topic] < maxBlocked {
			delete(p.failing, topic)
		}
	}
}

// mayBeClaimed reports whether it is time to try some of its lanes.
func (c *failingTopic) mayBeClaimed() bool { return c.calls == 0 && !time.Now().Before(c.until) }

// claimed notes that some lanes are tried. While other lanes may succeed, the next follow soon.
func (c *failingTopic) claimed() {
	pause := failingPause
	if c.lanes >= maxTried {
		c.tries++
		pause = backoff.Pause(c.tries)
	}
	c.until = time.Now().Add(pause)
}

// answered notes that the topic takes messages, of some keys at least, or refuses them. A refusal
// ends after a few tries of each message, so there is nothing to wait for.
func (c *failingTopic) answered() { c.tries, c.until = 0, time.Time{} }

// choose returns the selection of a claim: one failing topic, or, if topic is empty, all
// rows of other topics.
func (p *pump) choose(topic string, limit int) selection {
	s := selection{topic: topic, limit: limit}
	for id := range p.lanes {
		s.lanes = append(s.lanes, id)
	}
	now := time.Now()
	due := 0
	for id, b := range p.blocked {
		_, inHand := p.lanes[id]
		_, failing := p.failing[b.topic]
		switch {
		case inHand, topic == "" && failing, topic != "" && topic != b.topic:
		case now.Before(b.until), due == maxDue:
			s.lanes = append(s.lanes, id)
		default:
			due++
		}
	}
	if topic == "" {
		for t := range p.failing {
			s.topics = append(s.topics, t)
		}
		return s
	}
	if s.limit = min(limit, due+maxDue); p.failing[topic].lanes >= maxTried {
		s.limit = min(limit, due)
	}
	return s
}
