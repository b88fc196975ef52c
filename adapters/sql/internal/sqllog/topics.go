package sqllog

import (
	"context"
	"database/sql"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
)

// topic is a topic's row, which never changes.
type topic struct {
	// id is the row's number, and minus the number if the topic is an event store. So whoever has
	// the id knows the table.
	id     int64
	name   string
	shards int
}

// topics caches the rows and spreads messages over the shards.
type topics struct {
	driver  *Driver
	byName  sync.Map      // string to topic
	keyless atomic.Uint64 // messages without a key so far
}

func (t *topics) init(d *Driver) {
	t.driver = d
	t.keyless.Store(rand.Uint64()) // processes begin at different shards
}

// get returns the topic, which it creates if need be.
func (t *topics) get(ctx context.Context, name string) (topic, error) {
	if found, ok := t.cached(name); ok {
		return found, nil
	}
	var found topic
	err := t.driver.persist(ctx, func(ctx context.Context) (err error) {
		found, err = t.find(ctx, name)
		if errors.Is(err, errNoTopic) {
			found, err = t.create(ctx, name)
		}
		return err
	})
	if err == nil {
		t.byName.Store(name, found)
	}
	return found, err
}

// cached returns the topic if it was got before.
func (t *topics) cached(name string) (topic, bool) {
	found, ok := t.byName.Load(name)
	if !ok {
		return topic{}, false
	}
	return found.(topic), true
}

func (t *topics) find(ctx context.Context, name string) (topic, error) {
	return t.row(ctx, t.driver.store.DB(), name)
}

// row reads a topic's row. A store's row is made after the tables have the version of stores, so a
// statement that sees the row sees the version.
func (t *topics) row(ctx context.Context, q querier, name string) (topic, error) {
	d := t.driver.dialect
	found := topic{name: name}
	var version int
	err := q.QueryRowContext(ctx, d.SQL("SELECT t.id, t.shards, m.version FROM {topic} t, {meta} m WHERE t.name = ?"), name).
		Scan(&found.id, &found.shards, &version)
	if errors.Is(err, sql.ErrNoRows) {
		err = errNoTopic
	}
	if err != nil || version < versionOfStores {
		return found, err
	}
	isStore, err := exists(ctx, q, d.SQL("SELECT 1 FROM {store} WHERE topic = ?"), found.id)
	if isStore {
		found.id = -found.id
	}
	return found, err
}

func (t *topics) create(ctx context.Context, name string) (found topic, err error) {
	dialect := t.driver.dialect
	err = t.driver.transact(ctx, t.driver.store.DB(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, dialect.SQL("{insert} {topic} (name, shards) VALUES (?, ?) {ifnew}"), name, t.driver.config.Shards)
		if err != nil {
			return err
		}
		if found, err = t.row(ctx, tx, name); err != nil || dialect.CreateTopic == nil {
			return err
		}
		return dialect.CreateTopic(ctx, tx, found.id)
	})
	return found, err
}

// run is how many messages without a key go to one shard before the next shard: so that a batch
// touches few places of the table.
const run = 64

// shard returns the shard of a key, or the next shard for no key.
func (t *topics) shard(of topic, key string) int32 {
	if key == "" {
		return int32(t.keyless.Add(1) / run % uint64(of.shards))
	}
	return Shard(key, of.shards)
}

// Shard returns the shard of a key, the same in every process for ever.
func Shard(key string, shards int) int32 {
	h := uint64(14695981039346656037) // FNV-1a
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	h ^= h >> 32 // its low bits alone depend on the low bits of each byte alone
	return int32(h % uint64(shards))
}
