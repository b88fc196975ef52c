package sqllog

import (
	"context"
	"database/sql"
	"encoding/json"
	"iter"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/stored"
)

// poisonStore is the poison table's part for one group. An entry is one row with a JSON document,
// so that whoever looks into the table can read it.
type poisonStore struct {
	driver *Driver
	group  string
}

// Poison implements driver.Driver.
func (d *Driver) Poison(_ context.Context, group string) (driver.PoisonStore, error) {
	if !d.enter() {
		return nil, d.fail("poison", "", bus.ErrClosed)
	}
	defer d.calls.Done()
	return &poisonStore{driver: d, group: group}, nil
}

func (s *poisonStore) do(ctx context.Context, op string, do func(ctx context.Context) error) error {
	if !s.driver.enter() {
		return s.driver.fail(op, "", bus.ErrClosed)
	}
	defer s.driver.calls.Done()
	if err := s.driver.persist(ctx, do); err != nil {
		return s.driver.fail(op, "", err)
	}
	return nil
}

// Put implements driver.PoisonStore.
func (s *poisonStore) Put(ctx context.Context, entries ...driver.PoisonEntry) error {
	put := s.driver.dialect.SQL("INSERT INTO {poison} (grp, id, entry) VALUES (?, ?, ?) {upsert}")
	return s.do(ctx, "poison put", func(ctx context.Context) error {
		return s.driver.transact(ctx, s.driver.store.DB(), func(tx *sql.Tx) error {
			for i := range entries {
				doc, err := encodeEntry(&entries[i])
				if err != nil {
					return err
				}
				if _, err := tx.ExecContext(ctx, put, s.group, entries[i].ID, string(doc)); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// listPage is how many entries List reads at once: it keeps no cursor open while its caller looks
// at them.
const listPage = 100

// List implements driver.PoisonStore.
func (s *poisonStore) List(ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
	page := s.driver.dialect.SQL("SELECT ord, id, entry FROM {poison} WHERE grp = ? AND ord > ? ORDER BY ord LIMIT ?")
	return func(yield func(driver.PoisonEntry, error) bool) {
		last := int64(-1)
		for {
			type row struct {
				id  string
				doc []byte
			}
			var docs []row
			next := last
			err := s.do(ctx, "poison list", func(ctx context.Context) error {
				docs, next = docs[:0], last
				return collect(ctx, s.driver.store.DB(), func(rows *sql.Rows) error {
					var r row
					if err := rows.Scan(&next, &r.id, &r.doc); err != nil {
						return err
					}
					docs = append(docs, r)
					return nil
				}, page, s.group, last, listPage)
			})
			if err != nil {
				yield(driver.PoisonEntry{}, err)
				return
			}
			for _, r := range docs {
				entry, err := decodeEntry(r.doc)
				if err != nil {
					entry = unreadable(r.id, r.doc, err)
				}
				entry.ID, entry.Group = r.id, s.group // by which it is removed
				if !yield(entry, nil) {
					return
				}
			}
			if len(docs) < listPage {
				return
			}
			last = next
		}
	}
}

// Remove implements driver.PoisonStore.
func (s *poisonStore) Remove(ctx context.Context, ids ...string) error {
	remove := s.driver.dialect.SQL("DELETE FROM {poison} WHERE grp = ? AND id = ?")
	return s.do(ctx, "poison remove", func(ctx context.Context) error {
		return s.driver.transact(ctx, s.driver.store.DB(), func(tx *sql.Tx) error {
			for _, id := range ids {
				if _, err := tx.ExecContext(ctx, remove, s.group, id); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

// document is how an entry is stored. Bytes that need not be text are base64, as encoding/json
// writes them.
type document struct {
	ID string `json:"id"`
	stored.Entry
	Message *original `json:"message"`
}

type original struct {
	ID          string      `json:"id"`
	Key         []byte      `json:"key"`
	Type        string      `json:"type"`
	Source      string      `json:"source"`
	Subject     string      `json:"subject"`
	Time        time.Time   `json:"time"`
	ContentType string      `json:"contenttype"`
	Headers     [][2][]byte `json:"headers"`
	Payload     []byte      `json:"payload"` // null and "" are told apart
}

func encodeEntry(e *driver.PoisonEntry) ([]byte, error) {
	return json.Marshal(document{e.ID, stored.EntryOf(e), originalOf(e.Message)})
}

func originalOf(m *bus.Message) *original {
	if m == nil {
		return nil
	}
	o := &original{
		ID: m.ID, Key: []byte(m.Key), Type: m.Type, Source: m.Source, Subject: m.Subject, Time: m.Time,
		ContentType: m.ContentType, Payload: m.Payload,
	}
	for _, h := range m.Headers {
		o.Headers = append(o.Headers, [2][]byte{[]byte(h.Name), []byte(h.Value)})
	}
	return o
}

func (o *original) message() *bus.Message {
	if o == nil {
		return nil
	}
	m := &bus.Message{
		ID: o.ID, Key: string(o.Key), Type: o.Type, Source: o.Source, Subject: o.Subject, Time: o.Time,
		ContentType: o.ContentType, Payload: o.Payload,
	}
	for _, h := range o.Headers {
		m.Headers.Add(string(h[0]), string(h[1]))
	}
	return m
}

func decodeEntry(doc []byte) (driver.PoisonEntry, error) {
	var d document
	if err := json.Unmarshal(doc, &d); err != nil {
		return driver.PoisonEntry{}, err
	}
	if d.Message == nil {
		return driver.PoisonEntry{}, errNoMessage
	}
	return d.Of(d.ID, d.Message.message()), nil
}

// unreadable is the entry of a row that cannot be read: its own bytes, and why.
func unreadable(id string, doc []byte, why error) driver.PoisonEntry {
	return driver.PoisonEntry{
		ID: id, Message: &bus.Message{ID: id, Payload: doc},
		Failure: bus.Failure{Class: driver.Unreadable, Text: "the row cannot be read: " + why.Error()},
	}
}
