package kafka

import (
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// poisonTopic is where a group's entries are: compacted, so that they stay until they are removed, with one
// partition, so that they have an order.
func poisonTopic(group string) string { return "millrace.poison." + group }

// The headers that an entry's record has beside those of the message: the facts, and the message's key, for the
// record's key is the entry's id.
const (
	headerFacts = "millrace-poison"
	headerKey   = "millrace-key"
)

// poisonRoom is how much larger than a message its entry may be: a panic's stack takes most of it.
const poisonRoom = 256 << 10

// facts are what an entry says beside the message, as JSON.
type facts struct {
	Topic    string      `json:"topic"`
	Group    string      `json:"group"`
	Handler  string      `json:"handler,omitempty"`
	Lane     int32       `json:"lane"`
	Position int64       `json:"position"`
	Failure  bus.Failure `json:"failure"`
	Host     string      `json:"host,omitempty"`
	Time     time.Time   `json:"time"`
	// Tombstone: the message has no payload. A record without a value would remove the entry.
	Tombstone bool `json:"tombstone,omitempty"`
}

type poisonStore struct {
	driver *driver
	group  string
	topic  string
}

// Poison implements bus.Driver. The topic is created by the first Put.
func (d *driver) Poison(_ context.Context, group string) (bus.PoisonStore, error) {
	if err := bus.CheckName("group", group); err != nil {
		return nil, fail("poison", "", err)
	}
	if d.isClosed() {
		return nil, fail("poison", poisonTopic(group), bus.ErrClosed)
	}
	return &poisonStore{driver: d, group: group, topic: poisonTopic(group)}, nil
}

// Put implements bus.PoisonStore.
func (s *poisonStore) Put(ctx context.Context, entries ...bus.PoisonEntry) error {
	records := make([]kgo.Record, len(entries))
	size := 0
	for i := range entries {
		n, err := encodeEntry(&records[i], s.topic, &entries[i])
		if err != nil {
			return fail("poison", s.topic, fmt.Errorf("entry %q: %w", entries[i].ID, err))
		}
		size += n
	}
	return s.write(ctx, records, size)
}

// Remove implements bus.PoisonStore.
func (s *poisonStore) Remove(ctx context.Context, ids ...string) error {
	records := make([]kgo.Record, len(ids))
	size := 0
	for i, id := range ids {
		records[i] = kgo.Record{Topic: s.topic, Key: []byte(id)}
		size += len(id) + batchOverhead
	}
	return s.write(ctx, records, size)
}

// write appends records to the store.
func (s *poisonStore) write(ctx context.Context, records []kgo.Record, size int) error {
	d := s.driver
	if d.isClosed() {
		return fail("poison", s.topic, bus.ErrClosed)
	}
	if len(records) == 0 {
		return nil
	}
	if err := s.ensure(ctx); err != nil {
		return fail("poison", s.topic, err)
	}
	if !d.buffer.tryTake(size) {
		if err := d.buffer.take(ctx, size); err != nil {
			return fail("poison", s.topic, err)
		}
	}
	err := d.produce(ctx, records, size).wait(ctx, s.topic)
	if pe, ok := err.(*bus.PublishError); ok { //nolint:errorlint // made by wait
		for _, err := range pe.Errs {
			if err != nil {
				e := *err.(*bus.Error) //nolint:errorlint // as before
				e.Op = "poison"
				return &e
			}
		}
	}
	return err
}

// ensure creates the topic, whatever the bus does with others: the alternative is to lose what it is for.
func (s *poisonStore) ensure(ctx context.Context) error {
	d := s.driver
	if d.topics.has(s.topic) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.config.PublishTimeout)
	defer cancel()
	compact := "compact"
	configs := d.topics.sized(poisonRoom)
	configs["cleanup.policy"] = &compact
	if err := d.topics.look(ctx, s.topic, 1, configs); err != nil {
		return fmt.Errorf("the group's store is a compacted topic with one partition: %w", err)
	}
	return nil
}

func encodeEntry(r *kgo.Record, topic string, e *bus.PoisonEntry) (int, error) {
	m := e.Message
	about, err := json.Marshal(facts{
		Topic: e.Topic, Group: e.Group, Handler: e.Handler, Lane: e.Lane, Position: e.Position,
		Failure: e.Failure, Host: e.Host, Time: e.Time, Tombstone: m.Payload == nil,
	})
	if err != nil {
		return 0, err
	}
	records, size := encode(topic, []*bus.Message{m})
	*r = records[0]
	r.Headers = append(r.Headers,
		kgo.RecordHeader{Key: headerFacts, Value: about},
		kgo.RecordHeader{Key: headerKey, Value: r.Key})
	r.Key = []byte(e.ID)
	if r.Value == nil {
		r.Value = []byte{}
	}
	return size + len(about) + len(e.ID), nil
}

// decodeEntry returns false for records that are not entries.
func decodeEntry(r *kgo.Record) (bus.PoisonEntry, bool, error) {
	var about facts
	var key []byte
	found := false
	c := *r
	c.Headers = nil
	for _, h := range r.Headers {
		switch h.Key {
		case headerFacts:
			if err := json.Unmarshal(h.Value, &about); err != nil {
				return bus.PoisonEntry{}, true, fmt.Errorf("entry %q: %w", r.Key, err)
			}
			found = true
		case headerKey:
			key = h.Value
		default:
			c.Headers = append(c.Headers, h)
		}
	}
	if !found {
		return bus.PoisonEntry{}, false, nil
	}
	c.Key = key
	if about.Tombstone {
		c.Value = nil
	}
	d := decoder{}
	d.reserve([]accepted{{record: &c}})
	return bus.PoisonEntry{
		ID: string(r.Key), Message: d.message(&c), Topic: about.Topic, Group: about.Group, Handler: about.Handler,
		Lane: about.Lane, Position: about.Position, Failure: about.Failure, Host: about.Host, Time: about.Time,
	}, true, nil
}

// List implements bus.PoisonStore. It lists what the store held when it began. The topic is read twice: first for
// which entries there are and where the newest of each is, then for the entries, so that a large store is listed in
// little memory.
func (s *poisonStore) List(ctx context.Context) iter.Seq2[bus.PoisonEntry, error] {
	return func(yield func(bus.PoisonEntry, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if err := s.list(ctx, yield); err != nil {
			yield(bus.PoisonEntry{}, fail("poison", s.topic, err))
		}
	}
}
