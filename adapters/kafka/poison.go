package kafka

import (
	"context"
	"fmt"
	"iter"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/stored"
)

// poisonTopic is where a group's entries are: compacted, so that they stay until they are removed,
// with one partition, so that they have an order.
func poisonTopic(group string) string { return "millrace.poison." + group }

type poisonStore struct {
	driver *busDriver
	group  string
	topic  string
}

// Poison implements driver.Driver. The topic is created by the first Put.
func (d *busDriver) Poison(_ context.Context, group string) (driver.PoisonStore, error) {
	if err := driver.CheckName("group", group); err != nil {
		return nil, fail("poison", "", err)
	}
	if d.isClosed() {
		return nil, fail("poison", poisonTopic(group), bus.ErrClosed)
	}
	return &poisonStore{driver: d, group: group, topic: poisonTopic(group)}, nil
}

// Put implements driver.PoisonStore.
func (s *poisonStore) Put(ctx context.Context, entries ...driver.PoisonEntry) error {
	records := make([]kgo.Record, len(entries))
	for i := range entries {
		if err := encodeEntry(&records[i], s.topic, &entries[i]); err != nil {
			return fail("poison", s.topic, fmt.Errorf("entry %q: %w", entries[i].ID, err))
		}
	}
	return s.write(ctx, records)
}

// Remove implements driver.PoisonStore.
func (s *poisonStore) Remove(ctx context.Context, ids ...string) error {
	records := make([]kgo.Record, len(ids))
	for i, id := range ids {
		records[i] = kgo.Record{Topic: s.topic, Key: []byte(id)}
	}
	return s.write(ctx, records)
}

// write appends records to the store.
func (s *poisonStore) write(ctx context.Context, records []kgo.Record) error {
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
	return firstError(d.write(ctx, "poison", s.topic, records))
}

// ensure creates the topic.
func (s *poisonStore) ensure(ctx context.Context) error {
	d := s.driver
	if d.topics.has(s.topic) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.config.PublishTimeout)
	defer cancel()
	if err := d.ensureStore(ctx, s.topic, "", 1); err != nil {
		return fmt.Errorf("make the topic of the poison queue, which is compacted and has one partition: %w", err)
	}
	return nil
}

func encodeEntry(r *kgo.Record, topic string, e *driver.PoisonEntry) error {
	return encodeStored(r, topic, e.ID, e.Message, stored.EntryOf(e))
}

// decodeEntry makes an entry of class driver.Unreadable of a record that is none.
func (s *poisonStore) decodeEntry(r *kgo.Record) driver.PoisonEntry {
	var about stored.Entry
	m, err := decodeStored(r, &about)
	if err != nil {
		e := unreadable(r, err)
		e.ID, e.Group = string(r.Key), s.group
		return e
	}
	return about.Of(string(r.Key), m)
}

// List implements driver.PoisonStore. It lists the entries that the store held when List began. It
// reads the topic twice: first for the place of each entry's newest record, then for the entries.
// So a large store is listed in little memory.
func (s *poisonStore) List(ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
	return func(yield func(driver.PoisonEntry, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if err := s.list(ctx, yield); err != nil {
			yield(driver.PoisonEntry{}, fail("poison", s.topic, err))
		}
	}
}
