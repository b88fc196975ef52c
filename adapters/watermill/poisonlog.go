package watermill

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/stored"
)

// poisonLog is a poison store on a topic, to which Watermill can only append: entries, removals,
// and a mark by each List, which reads from the beginning to its own mark. All have one key, so
// that they stay in order.
type poisonLog struct {
	driver *busDriver
	topic  string
}

// poisonSuffix follows the group in the topic's name.
const poisonSuffix = ".poison"

// poisonRecord is one message of the log: one of its fields is set.
type poisonRecord struct {
	Put    *poisonedEntry `json:"put,omitempty"`
	Remove []string       `json:"remove,omitempty"`
	Mark   string         `json:"mark,omitempty"`
}

// poisonedEntry is a driver.PoisonEntry in JSON, with all texts that may be no UTF-8 as bytes.
type poisonedEntry struct {
	ID string `json:"id"`
	stored.Entry
	Message storedMessage `json:"message"`
}

type storedMessage struct {
	ID          string        `json:"id"`
	Key         []byte        `json:"key,omitempty"`
	Type        string        `json:"type,omitempty"`
	Source      string        `json:"source,omitempty"`
	Subject     string        `json:"subject,omitempty"`
	Time        time.Time     `json:"time"`
	ContentType string        `json:"contentType,omitempty"`
	Headers     []exactHeader `json:"headers,omitempty"`
	Payload     []byte        `json:"payload"` // null is a tombstone
}

func storeEntry(p driver.PoisonEntry) *poisonedEntry {
	m := p.Message
	e := &poisonedEntry{
		ID: p.ID, Entry: stored.EntryOf(&p),
		Message: storedMessage{
			ID: m.ID, Key: []byte(m.Key), Type: m.Type, Source: m.Source, Subject: m.Subject, Time: m.Time, ContentType: m.ContentType, Payload: m.Payload,
		},
	}
	for _, h := range m.Headers {
		e.Message.Headers = append(e.Message.Headers, exactHeader{h.Name, []byte(h.Value)})
	}
	return e
}

func (e *poisonedEntry) entry() driver.PoisonEntry {
	s := e.Message
	m := &bus.Message{
		ID: s.ID, Key: string(s.Key), Type: s.Type, Source: s.Source, Subject: s.Subject, Time: s.Time, ContentType: s.ContentType, Payload: s.Payload,
	}
	for _, h := range s.Headers {
		m.Headers.Add(h.Name, string(h.Value))
	}
	return e.Of(e.ID, m)
}

func (l *poisonLog) append(ctx context.Context, records ...poisonRecord) error {
	msgs := make([]*bus.Message, len(records))
	for i, r := range records {
		data, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("poison store: %w", err)
		}
		msgs[i] = &bus.Message{
			ID: bus.NewID(), Key: l.topic, Type: "millrace.poison", Source: "/" + l.driver.config.Broker, Time: time.Now(), ContentType: "application/json", Payload: data,
		}
	}
	return l.driver.Publish(ctx, l.topic, msgs)
}

// Put implements driver.PoisonStore.
func (l *poisonLog) Put(ctx context.Context, entries ...driver.PoisonEntry) error {
	if len(entries) == 0 {
		return nil
	}
	records := make([]poisonRecord, len(entries))
	for i, p := range entries {
		records[i].Put = storeEntry(p)
	}
	return l.append(ctx, records...)
}

// Remove implements driver.PoisonStore.
func (l *poisonLog) Remove(ctx context.Context, ids ...string) error {
	if l.driver.config.Reader == nil {
		return l.unreadable("remove from the poison queue")
	}
	if len(ids) == 0 {
		return nil
	}
	return l.append(ctx, poisonRecord{Remove: ids})
}

// List implements driver.PoisonStore.
func (l *poisonLog) List(ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
	return func(yield func(driver.PoisonEntry, error) bool) {
		entries, err := l.read(ctx)
		if err != nil {
			yield(driver.PoisonEntry{}, err)
			return
		}
		for _, e := range entries {
			if !yield(e.entry(), nil) {
				return
			}
		}
	}
}

func (l *poisonLog) unreadable(op string) error {
	return l.driver.fail(op, l.topic, fmt.Errorf("%w: this pub/sub cannot be read without consuming; the entries are the messages of the topic", bus.ErrUnsupported))
}

func (l *poisonLog) read(ctx context.Context) (entries []*poisonedEntry, err error) {
	if l.driver.config.Reader == nil {
		return nil, l.unreadable("list the poison queue")
	}
	mark := bus.NewID()
	if err := l.append(ctx, poisonRecord{Mark: mark}); err != nil {
		return nil, err
	}
	sub, err := l.driver.config.Reader()
	if err != nil {
		return nil, l.driver.fail("list the poison queue", l.topic, err)
	}
	defer func() { err = errors.Join(err, sub.Close()) }()
	messages, err := sub.Subscribe(ctx, l.topic)
	if err != nil {
		return nil, l.driver.fail("list the poison queue", l.topic, err)
	}
	for {
		select {
		case <-ctx.Done():
			return nil, l.driver.fail("list the poison queue", l.topic, ctx.Err())
		case w, ok := <-messages:
			if !ok {
				return nil, l.driver.fail("list the poison queue", l.topic, errors.New("the subscription ended"))
			}
			r := l.readRecord(w)
			w.Ack()
			if r.Mark == mark {
				return entries, nil
			}
			entries = r.apply(entries)
		}
	}
}

// readRecord reads a message of the log. A message that is no record of the log becomes an
// unreadable entry, with the same id at each reading.
func (l *poisonLog) readRecord(w *message.Message) (r poisonRecord) {
	err := json.Unmarshal(w.Payload, &r)
	if err == nil && (r.Put != nil || r.Remove != nil || r.Mark != "") {
		return r
	}
	if err == nil {
		err = errors.New("the message is neither an entry, nor a removal, nor a mark")
	}
	id := w.UUID
	if id == "" {
		id = fmt.Sprintf("%x", sha256.Sum256(w.Payload))
	}
	return poisonRecord{Put: &poisonedEntry{
		ID: "unreadable-" + id,
		Entry: stored.Entry{
			Group: strings.TrimSuffix(l.topic, poisonSuffix), Failure: bus.Failure{Class: driver.Unreadable, Text: err.Error()},
		},
		Message: storedMessage{ID: id, Payload: w.Payload},
	}}
}

// apply returns the entries after r.
func (r poisonRecord) apply(entries []*poisonedEntry) []*poisonedEntry {
	gone := r.Remove
	if r.Put != nil {
		gone = []string{r.Put.ID}
	}
	entries = slices.DeleteFunc(entries, func(e *poisonedEntry) bool { return slices.Contains(gone, e.ID) })
	if r.Put != nil {
		entries = append(entries, r.Put)
	}
	return entries
}
