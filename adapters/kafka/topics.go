package kafka

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// batchOverhead is a generous bound of the bytes that a batch and a record add to the record's own:
// 61 bytes of batch header and varints.
const batchOverhead = 256

// topics knows which topics exist and how large a batch they take. A topic is looked up once.
type topics struct {
	client *kgo.Client
	adm    *kadm.Client
	config *Config

	limits   sync.Map     // topic name -> int32, the largest batch it takes
	ids      sync.Map     // topic name -> [16]byte, of the topic found last
	cluster  atomic.Value // string: the cluster's id, as of the last answer
	lowering sync.Mutex   // held while a limit is read again

	lookups sync.Map // topic name -> chan struct{}, full while it is looked up: 64 first publishes ask once, and no other topic waits
}

func newTopics(c *Config) *topics {
	return &topics{config: c}
}

// limit is the largest batch of a topic. The client asks when it first meets one of the topic's
// partitions, which is after ensure has looked the topic up.
func (t *topics) limit(name string) int32 {
	if l, ok := t.limits.Load(name); ok {
		return l.(int32)
	}
	return int32(t.config.MaxMessage + batchOverhead)
}

// forget makes the next ensure look again: the topic may have been deleted.
func (t *topics) forget(name string) { t.limits.Delete(name) }

// met notes a topic's id. The client would go on with the id of a deleted topic, so it forgets the
// deleted topic. It must not forget a topic that is still there: it would number its records from 0
// again, as the same producer. The broker would acknowledge them as repeats of the first records,
// and drop them.
func (t *topics) met(name string, id [16]byte) {
	was, had := t.ids.Swap(name, id)
	if had && (was != id || id == [16]byte{}) { // brokers before 2.8 have no ids
		t.client.PurgeTopicsFromProducing(name)
	}
}

// has says whether a topic was found before.
func (t *topics) has(name string) bool {
	_, ok := t.limits.Load(name)
	return ok
}

// ensure sees to it that a topic exists: it is created if the configuration says with how many
// partitions.
func (t *topics) ensure(ctx context.Context, name string) error {
	if t.has(name) {
		return nil
	}
	return t.look(ctx, name, t.config.Partitions, nil)
}

// check is ensure for a topic that may have been deleted since it was looked up. It returns the
// topic's metadata. The topic's id tells it from earlier and later topics of the same name, and is
// zero where the broker has none.
func (t *topics) check(ctx context.Context, name string) (kmsg.MetadataResponseTopic, error) {
	found, err := t.find(ctx, name)
	if isMissing(err) {
		t.forget(name)
		if err := t.ensure(ctx, name); err != nil {
			return found, err
		}
		found, err = t.find(ctx, name)
	}
	if err != nil && len(found.Partitions) == 0 {
		return found, err
	}
	return found, nil
}

// look finds a topic, or creates it with these partitions unless they are 0.
func (t *topics) look(ctx context.Context, name string, partitions int, configs map[string]*string) error {
	value, _ := t.lookups.LoadOrStore(name, make(chan struct{}, 1))
	lookup := value.(chan struct{})
	select {
	case lookup <- struct{}{}:
		defer func() { <-lookup }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if t.has(name) {
		return nil
	}
	created := false
	for b := (backoff.Backoff{}); ; {
		detail, err := t.find(ctx, name)
		switch {
		case err == nil:
			t.met(name, detail.TopicID)
			limit, _ := t.readLimit(ctx, name)
			t.limits.Store(name, limit)
			return nil
		case errors.Is(err, kerr.UnknownTopicOrPartition) && !created:
			if partitions == 0 {
				return errMissing
			}
			if err := t.create(ctx, name, partitions, configs); err != nil {
				return err
			}
			created = true // from now on, unknown means: not known to that broker yet
			continue
		case !kerr.IsRetriable(err):
			return err
		case len(detail.Partitions) > 0 && !created:
			return nil // it exists; the client waits for leaders that are missing now
		}
		if !b.Wait(ctx) {
			return fmt.Errorf("the topic was created, and no broker serves it yet: %w", ctx.Err())
		}
	}
}

// find asks for a topic; the error is nil if it exists and each partition has a leader. The topic's
// known metadata is returned in any case. (The admin client would answer from a cache, and so not
// know a topic created just now.)
func (t *topics) find(ctx context.Context, name string) (kmsg.MetadataResponseTopic, error) {
	req := kmsg.NewPtrMetadataRequest()
	topic := kmsg.NewMetadataRequestTopic()
	topic.Topic = &name
	req.Topics = append(req.Topics, topic)
	resp, err := req.RequestWith(ctx, t.client)
	if err != nil {
		return kmsg.MetadataResponseTopic{}, err
	}
	if resp.ClusterID != nil {
		t.cluster.Store(*resp.ClusterID)
	}
	if len(resp.Topics) != 1 {
		return kmsg.MetadataResponseTopic{}, errors.New("the broker's answer lacks the topic")
	}
	found := resp.Topics[0]
	if err := kerr.ErrorForCode(found.ErrorCode); err != nil {
		return found, err
	}
	for _, p := range found.Partitions {
		if err := kerr.ErrorForCode(p.ErrorCode); err != nil && p.Leader < 0 {
			return found, err
		}
	}
	return found, nil
}

func (t *topics) create(ctx context.Context, name string, partitions int, configs map[string]*string) error {
	if configs == nil {
		configs = t.sized(0)
	}
	answer, err := t.adm.CreateTopic(ctx, int32(partitions), int16(t.config.Replication), configs, name)
	if err == nil || errors.Is(err, kerr.TopicAlreadyExists) { // another process was quicker
		return nil
	}
	if answer.ErrMessage != "" {
		err = fmt.Errorf("%w (%s)", err, answer.ErrMessage)
	}
	return fmt.Errorf("create the topic with %d partitions: %w", partitions, err)
}

// sized are the configs of a topic that takes our largest message, and so much more.
func (t *topics) sized(more int) map[string]*string {
	size := strconv.Itoa(t.config.MaxMessage + batchOverhead + more)
	return map[string]*string{"max.message.bytes": &size}
}

// readLimit asks for a topic's own limit, and says whether it is known. A client that may not read
// the topic's configuration finds the limit by being refused.
func (t *topics) readLimit(ctx context.Context, name string) (limit int32, known bool) {
	limit = int32(t.config.MaxMessage + batchOverhead)
	configs, err := t.adm.DescribeTopicConfigs(ctx, name)
	if err != nil {
		return limit, false
	}
	for _, c := range configs {
		for _, kv := range c.Configs {
			if kv.Key != "max.message.bytes" {
				continue
			}
			if n, err := strconv.Atoi(kv.MaybeValue()); err == nil && n >= 512 { // less, the client does not take
				limit, known = min(limit, int32(min(n, 1<<30))), true
			}
		}
	}
	return limit, known
}

var errMissing = fmt.Errorf("%w: the topic does not exist, and this bus does not create topics: create it, or open the bus with partitions=N (as in kafka://…?partitions=12): %w",
	bus.ErrNotFound, kerr.UnknownTopicOrPartition)
