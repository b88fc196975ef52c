package kafka

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
)

const (
	// rebalanceTimeout is how long a group waits for a member that has to hand partitions over.
	rebalanceTimeout = time.Minute
	// drainTimeout is the handlers' part of rebalanceTimeout, and commitTimeout the last commit's
	// part. The rest is for the way to the broker.
	drainTimeout  = 45 * time.Second
	commitTimeout = 10 * time.Second
	// heartbeatInterval bounds how late a member hears that another one came or left. Kafka's default of 3 s would be
	// how long the partitions of a member that left stand still.
	heartbeatInterval = 500 * time.Millisecond
	// fetchWait is how long a broker holds a fetch that finds nothing. A partition that is assigned meanwhile is in
	// the next one only, so this, too, is a part of the time that a handover takes.
	fetchWait = 250 * time.Millisecond
)

// subscribePatience is how long Subscribe sees whether an error passes: a new cluster has no group
// coordinator for some seconds. Then the router reports the error, and calls again.
const subscribePatience = 10 * time.Second

// These bounds limit a client's fetch ahead from one broker; between them, the subscription's own
// bound applies. Below 1 MiB, every request would bring a part of a batch; above 4 MiB, more is not
// quicker. Two fetches are in memory: the one being handled and the next. A decoded fetch takes
// several times its size.
const (
	minFetchBytes = 1 << 20
	maxFetchBytes = 4 << 20
)

// Subscribe implements driver.Driver.
func (d *busDriver) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	if d.isClosed() {
		return nil, fail("subscribe", s.Topic, bus.ErrClosed)
	}
	if at, ok := s.Start.Time(); ok && at.IsZero() {
		return nil, fail("subscribe", s.Topic, fmt.Errorf("%w: start at the zero time", bus.ErrInvalid))
	}
	var topic kmsg.MetadataResponseTopic
	var begin start
	if s.Transactional {
		if err := d.fencesTransactions(ctx); err != nil {
			return nil, fail("subscribe", s.Topic, err)
		}
	}
	patience, cancel := context.WithTimeout(ctx, subscribePatience)
	defer cancel()
	err := persist(patience, func() (err error) {
		if topic, err = d.topics.check(patience, s.Topic); err == nil {
			begin, err = d.start(patience, s, topic.TopicID)
		}
		return err
	})
	if err != nil {
		return nil, fail("subscribe", s.Topic, err)
	}
	if err := d.checkStores(ctx, s); err != nil {
		return nil, fail("subscribe", s.Topic, err)
	}
	src := newSource(d, s, o, begin)
	src.topicID, src.partitions = topic.TopicID, len(topic.Partitions)
	if err := src.join(); err != nil {
		return nil, fail("subscribe", s.Topic, err)
	}
	d.mu.Lock()
	closed := d.isOver
	if !closed {
		d.sources[src] = struct{}{}
	}
	d.mu.Unlock()
	if closed {
		_ = src.Close(ctx) // it has consumed nothing, and the driver's end is the error to tell
		return nil, fail("subscribe", s.Topic, bus.ErrClosed)
	}
	return src, nil
}

// fencesTransactions is an error if a broker does not check the member and the generation of a transaction's positions (KIP-447).
func (d *busDriver) fencesTransactions(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, subscribePatience)
	defer cancel()
	return persist(ctx, func() error {
		brokers, err := d.adm.ApiVersions(ctx)
		if err != nil {
			return err
		}
		for _, b := range brokers.Sorted() {
			if b.Err != nil { // away; the group's broker is no older than others, but in an upgrade
				continue
			}
			commit, _ := b.KeyMaxVersion(int16(kmsg.TxnOffsetCommit))
			fetch, _ := b.KeyMaxVersion(int16(kmsg.OffsetFetch))
			if commit < 3 || fetch < 7 {
				return fmt.Errorf("%w: exactly once needs Kafka 2.5 or newer, and broker %d is older: it would not fence members that have lost their lanes (KIP-447)", bus.ErrUnsupported, b.NodeID)
			}
		}
		return nil
	})
}

// join makes the client that is the group's member.
func (s *source) join() error {
	d, c := s.driver, &s.driver.config
	fetch := int32(min(max(s.sub.Bytes, minFetchBytes), maxFetchBytes))
	ctx, stop := context.WithCancel(context.Background())
	opts := append(d.options(
		kgo.Balancers(kgo.CooperativeStickyBalancer()),
		kgo.SessionTimeout(c.SessionTimeout),
		kgo.HeartbeatInterval(min(c.SessionTimeout/10, heartbeatInterval)),
		kgo.RebalanceTimeout(rebalanceTimeout),
		kgo.FetchMaxBytes(fetch),
		kgo.FetchMaxPartitionBytes(max(fetch/4, minFetchBytes)),
		kgo.FetchMaxWait(fetchWait),
	),
		kgo.WithContext(ctx),
		kgo.ConsumerGroup(s.sub.Group),
		kgo.ConsumeTopics(s.sub.Topic),
		kgo.DisableAutoCommit(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.KeepControlRecords(), // so that the position gets past them
		kgo.WithPools(&d.pool),
		kgo.WithHooks(&s.pulse),
		// This says where to go on when the log has changed. Below the log's start, the client goes
		// to the start in any case.
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.OnOffsetsFetched(s.fetched),
		kgo.AdjustFetchOffsetsFn(s.assigned),
		kgo.OnPartitionsRevoked(s.revoked),
		kgo.OnPartitionsLost(s.lost),
	)
	if s.topicID == [16]byte{} { // commits are by name then
		opts = append(opts, kgo.MaxVersions(d.versions(kmsg.OffsetCommit, 9)))
	}
	if id := s.instance(); id != nil {
		opts = append(opts, kgo.InstanceID(*id))
	}
	client, err := kgo.NewClient(opts...)
	if err != nil {
		stop()
		return fmt.Errorf("%w: %w", bus.ErrInvalid, err)
	}
	s.mu.Lock()
	s.client, s.stopClient = client, stop
	s.mu.Unlock()
	go s.background()
	return nil
}

// instance is the name of a static member, or nil.
func (s *source) instance() *string {
	if s.driver.config.Instance == "" {
		return nil
	}
	id := s.driver.config.Instance + "." + s.sub.Topic
	return &id
}
