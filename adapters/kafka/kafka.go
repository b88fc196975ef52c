// Package kafka is a bus over Apache Kafka (2.1 or newer) and other brokers with its protocol.
//
// # URLs
//
//	kafka://HOST:PORT,HOST:PORT?partitions=12
//	kafka://USER:PASSWORD@HOST:PORT?sasl=scram-sha-512&tls=true
//
// The hosts are where to begin; the rest of the cluster is found through them. The port defaults to
// 9092; in a list, give every host a port or none but the last. A list of IPv6 addresses cannot be
// written as a URL: use names, or [Config]. Parameters:
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
//	tls=false          true encrypts
//	ca=, cert=, key=   with TLS: PEM files of the authorities, in place of the system's, and of the client's certificate and key
//	passwordfile=      a file with the password, in place of the URL's; it is read for each connection
//	sasl=none          plain, scram-sha-256 or scram-sha-512, with the user and password of the URL
//
// # Delivery semantics
//
// Published means: written by the partition's leader and all replicas in sync (acks=all), without
// duplicates from the client's own retries (idempotent producer). The topic's min.insync.replicas
// says how many replicas are needed. If a publish's context ends while its batch is under way, the
// publish reports "not known"; the message may still be written.
//
// Messages of equal keys go to one partition (murmur2, as with Kafka's own clients) and are read in
// the order in which they were written. Adding partitions to a topic moves keys, so that their
// order is lost at that moment. New partitions are read within 30 s, from their beginning.
//
// A commit holds a partition's first unfinished offset. Its metadata holds the finished offsets
// beyond, so that a restart or a new owner does not receive these messages again. Settlements are
// committed every commit interval, before a partition is handed over, and at Close. After a crash,
// the messages settled in the last interval come again. Only messages of committed transactions are
// delivered. A commit's metadata has room for about 3,000 bytes: some 1,500 unfinished messages in
// a wild mix with finished ones. Finished messages that do not fit are delivered again after a
// crash. If retention deletes messages before a group has read them, Receive reports once which
// ones. The group goes on with the oldest message left. [bus.StartAt] goes by the time of
// publishing, in milliseconds.
//
// A new group commits its start in all partitions before it receives anything. A partition without
// a position was added later, and is read from its oldest message. If a partition or its parked
// messages cannot be read, the partition begins later and holds up no other partition. Receive
// reports it after 2 s.
//
// Positions belong to a topic, not to its name: when a topic is deleted and created anew, a group
// reads all messages of the new topic. Receive reports it once. (Brokers before 2.8 have no topic
// ids, and keep the positions. A group that starts at the end, and has no member while the topic is
// created anew, is new to it.)
//
// router.Guarantee(router.ExactlyOnce) needs Kafka 2.5 or newer. One transaction writes the
// handlers' outputs, the positions of the handled messages, and parked messages. Each member has a
// transactional producer, fenced by the group's generation; its id begins with
// millrace.GROUP.TOPIC. If a process dies within a transaction, the broker aborts it after the
// session timeout, but at least 10 s. Until then, the next owner of its partitions and the readers
// of its outputs wait.
//
// # Topology
//
// A bus topic is a Kafka topic, a group a consumer group, a lane a partition. Topics are created
// only with partitions=N, on their first use. Each subscription is a group member with a client of
// its own (cooperative-sticky balancing). Messages that a group could not handle are in the
// compacted topic millrace.poison.GROUP, which is created when first needed.
//
// A group's parked messages (long retry delays, delayed messages, keys that wait) are in the
// compacted topic millrace.parking.N.GROUP.TOPIC. N is the length of the group's name; a name that
// would be too long is replaced by its hash. The parking topic has a partition for each of the
// topic's. It is created when first needed, and grown with its topic. A partition's owner reads its
// parking partition to the end before it delivers, and writes to it. Others write their requests (a
// replay, say) there as commands; the owner carries them out within a second or so. Deleting a
// parking topic loses the messages parked in it. With access control, members need Read, Write,
// Create, Describe and Alter for both kinds of topics.
//
// Messages travel as CloudEvents in binary mode: their fields in the headers ce_id, ce_source,
// ce_type, ce_subject, ce_time and content-type, the key as the record's key. A record without
// these headers is an ordinary message: its ID is made of topic, partition and offset.
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

// Open opens a Kafka bus. It returns once a broker has answered, or with the last failure when ctx
// ends.
func Open(ctx context.Context, c Config, opts ...bus.Option) (*bus.Bus, error) {
	d, err := open(ctx, c)
	if err != nil {
		return nil, err
	}
	return bus.New(d, opts...), nil
}
