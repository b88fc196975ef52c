// Package kafka is a bus over Apache Kafka (2.1 or newer) and what speaks its protocol.
//
// # URLs
//
//	kafka://HOST:PORT,HOST:PORT?partitions=12
//	kafka://USER:PASSWORD@HOST:PORT?sasl=scram-sha-512&tls=true
//
// The hosts are where to begin; the rest of the cluster is found through them. The port defaults to 9092; in a list,
// give every host a port or none but the last. A list of IPv6 addresses cannot be written as a URL: use names, or
// [Config]. Parameters:
//
//	partitions=0       with how many partitions a missing topic is created; 0: it is an error (0 to 10,000)
//	replication=-1     the replication factor of topics that are created; -1: the broker's default (to 100)
//	linger=0s          how long a message waits for others to share its batch (0 to 10s)
//	compression=snappy snappy, none, lz4, zstd or gzip
//	maxmessage=2097152 the largest message and batch in bytes, if the topic takes it (1024 to 67108864)
//	timeout=30s        bounds a publish without an earlier deadline (1s to 10m)
//	commit=100ms       how long a settlement may wait to be committed (1ms to 1m)
//	session=15s        after how long a silent member counts as dead (100ms to 30m; brokers allow 6s to 30m)
//	instance=          a name, unique in the group, makes memberships static
//	rack=              the rack this process is in, to read from replicas nearby
//	tls=false          true encrypts, trusting the system's certificate authorities
//	sasl=none          plain, scram-sha-256 or scram-sha-512, with the user and password of the URL
//
// # Delivery semantics
//
// Published means: written by the partition's leader and all replicas in sync (acks=all), without duplicates from the
// client's own retries (idempotent producer). How many replicas that is, the topic's min.insync.replicas says. A
// publish whose context ends while its batch is under way reports "not known"; the message may still be written.
//
// Messages of equal keys go to one partition (murmur2, as with Kafka's own clients) and are read in the order in
// which they were written. Adding partitions to a topic moves keys, so that their order is lost at that moment. New partitions are
// read within 30 s, from their beginning.
//
// What is committed of a partition is the first unfinished offset, and with it, in the commit's metadata, what is
// finished beyond, so that a restart or a new owner is not given it again. Settlements are committed every commit
// interval, before a partition is handed over, and at Close: after a crash, what was settled in the last interval
// comes again. Only messages of committed transactions are delivered. A commit's metadata has room for about 3,000
// bytes: some 1,500 unfinished messages in a wild mix with finished ones; what does not fit is delivered again
// after a crash. If retention deletes messages before a group has read them, Receive reports once which ones, and the
// group goes on with the oldest that there is. [bus.StartAt] goes by the time of publishing, in milliseconds.
//
// Where a new group begins is committed for all partitions before it is given anything. A partition without a position was added later, and is
// read from its oldest message. A partition that cannot be read, or whose parked messages cannot, begins later and holds up no other one;
// Receive reports it after 2 s.
//
// Positions belong to a topic, not to its name: of a topic that is deleted and created anew, a group reads all messages, and Receive reports it
// once. (Brokers before 2.8 have no topic ids, and keep the positions. A group that starts at the end, and has no member while the topic
// is created anew, is new to it.)
//
// With router.Guarantee(router.ExactlyOnce), which needs Kafka 2.5 or newer, what handlers emit and the positions of what they handled are written in one transaction,
// and so is what is parked. Each member has a transactional producer, fenced by the group's generation; its id begins with
// millrace.GROUP.TOPIC. If a process dies within a transaction, the next owner of its partitions, and the readers of its outputs, wait until the broker
// has aborted it: the session timeout, but at least 10 s.
//
// # Topology
//
// A bus topic is a Kafka topic, a group a consumer group, a lane a partition. Topics are created only with
// partitions=N, on their first use. Each subscription is a group member with a client of its own (cooperative-sticky
// balancing). What a group could not handle is in the compacted topic millrace.poison.GROUP, which is created when
// first needed.
//
// What a group has parked (long retry delays, delayed messages, keys that wait) is in the compacted topic
// millrace.parking.N.GROUP.TOPIC, where N is the length of the group's name, with a partition for each of the topic's; a name that
// would be too long is replaced by its hash. It is created when first needed, and grown with its topic. Who owns a partition reads its
// parking partition to the end before it delivers, and writes to it; what others ask for (a replay, say) they write there
// as commands, which the owner carries out within a second or so. Deleting such a topic loses what is parked in it.
// With access control, members need Read, Write, Create, Describe and Alter for both kinds of topics.
//
// Messages travel as CloudEvents in binary mode: their fields in the headers ce_id, ce_source, ce_type, ce_subject,
// ce_time and content-type, the key as the record's key. A record without these headers is an ordinary message: its
// ID is made of topic, partition and offset.
//
// # Native client
//
// [bus.As] gives the *kgo.Client (github.com/twmb/franz-go) that the bus publishes with.
package kafka

import (
	"context"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

func init() {
	driver.Register("kafka", func(ctx context.Context, p *driver.Params) (driver.Driver, error) {
		c, err := fromParams(p)
		if err != nil {
			return nil, err
		}
		return open(ctx, c)
	})
}

// Open opens a Kafka bus. It returns once a broker has answered, or with the last failure when ctx ends.
func Open(ctx context.Context, c Config, opts ...bus.Option) (*bus.Bus, error) {
	d, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}
