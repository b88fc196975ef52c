// Package rabbitmq is a bus on RabbitMQ, over AMQP 0-9-1.
//
// A topic is an exchange. Each group has a few queues on it, its lanes, and one process at a time
// consumes each lane. So equal keys are handled in order by any number of processes. Connections
// are repaired in the background, and everything is declared again after that. RabbitMQ 3.10 is
// tested; streams (3.9 and newer) and quorum queues must be available. No plugin is needed.
//
// # URLs
//
//	amqp://user:password@host:5672/vhost
//	amqps://user:password@host:5671/vhost      with TLS
//
// User and password default to guest, the vhost to /. Several nodes of a cluster are separated by
// commas, each with its port: amqp://user:password@a:5672,b:5672/vhost. They are tried in this
// order. Parameters:
//
//	queue=quorum        the type of the queues that are created: quorum or classic
//	lanes=8             the number of lanes of a group that is created (1 to 64)
//	heartbeat=10s       interval of signs of life, in whole seconds (2s to 5m);
//	                    a dead link is noticed after one and a half
//	unrouted=100000     the number of messages that a topic keeps while it has no group, for topics
//	                    that are created (1 to 1,000,000,000)
//	maxmessage=16515072 the largest message in bytes with its headers (1024 to 536870912); the
//	                    server's max_message_size must be 256 KiB higher (it is 128 MiB before
//	                    RabbitMQ 4, 16 MiB since)
//	name=               the connections' name in RabbitMQ's tools; the program's name by default
//	passwordfile=       a file with the password, in place of the URL's; it is read for each connection
//	ca=, cert=, key=    with amqps: PEM files of the authority, the client's certificate and its
//	                    key; without ca, the system's authorities
//
// Quorum is the default because it is the safer type: it is replicated in a cluster. It is also the
// faster type for many publishers and for consumers. A lone publisher gains nothing by it.
//
// Classic queues are for single nodes: in a cluster, a node that is down takes its lanes with it.
// Servers before 3.11 then send the messages for the missing lanes to lane 0, out of their keys'
// order. If lane 0 is down, too, they send them to no lane.
//
// A topic and a group keep the type, number of lanes and bound that they were created with: a
// process with another configuration uses the existing ones.
//
// # Delivery semantics
//
// Published means one of two things. RabbitMQ has confirmed that the queues of all groups attached
// to the topic have stored the message (quorum: on a majority of their nodes). Or the message is
// kept because the topic has no group yet. A message that no queue took is an error that says so
// for sure.
//
// When a connection or the context ends, messages that were sent and not confirmed have an unknown
// fate. The rest of the call is definitely not published: of a key, nothing is sent behind a
// message with an unknown fate.
//
// While there is no connection, or the broker blocks publishers (an alarm), callers wait within
// their context. Several calls share the connection and are confirmed together. Of a topic, 896
// messages or 32 MiB are under way at most. A topic with a queue that does not confirm (it has no
// majority, say) takes this room, and its callers wait; other topics do not notice.
//
// A group gets the messages published after it was attached to the topic. RabbitMQ has no past to
// read, with one exception: a topic keeps messages while it has no group. Beyond a bound it refuses
// them. The kept messages go to the first group that starts at [bus.Earliest], in order and before
// the messages published meanwhile. [bus.Latest] leaves them for a later group. [bus.StartAt] is
// not supported.
//
// Messages that the broker was routing at the moment of the handover are found within seconds and
// go to all groups. A crash during the handover can make repeats.
//
// Equal keys are handled in the order in which they were published: their slot decides the lane,
// and one member of the group consumes the lane. Members share the lanes evenly. Before a member
// gives a lane up, it finishes and settles the messages in its handlers; the rest goes to the next
// member at its old place. A member that cannot be reached keeps its lanes until the broker misses
// its heartbeats.
//
// When a process dies or a connection ends, unsettled messages are delivered again: each key from
// its first unsettled message on, in order. Settling is acknowledged to the broker within 5 ms;
// after a crash, messages settled within that time are delivered again. Positions belong to one
// ownership: a message that is delivered again has another position.
//
// The broker delivers ahead of the handlers: at most 256 messages a lane, or a lane's share of
// twice the in-flight bound if that is more. It never delivers more than the bound, nor more than
// the bound's bytes hold at 16 KiB a message. RabbitMQ cannot bound this by bytes: with large
// messages, choose a lower bound. A message that is not settled within RabbitMQ's consumer_timeout
// (30 minutes by default) is delivered again; its lane is lost for a moment.
//
// When nothing can be consumed, or not every lane, the router's Health says so at once, and its log
// after a second. There are four causes: no connection; a missing permission; a lane's
// queue that belongs to another connection; a lane's queue that does not confirm because it has no
// majority. The driver goes on trying. While the node with the queue of the members is down, they
// cannot be counted, and each keeps the lanes that it has.
//
// Parked messages ([driver.ParkingSource]) are stored in a queue of their own for each lane, 50,000
// at most, with replayed messages beside them. The lane's owner gets all of them when it takes the
// lane, and again after ten minutes. So a consumer_timeout of the server must be longer than ten
// minutes. An owner keeps some two hundred bytes of each parked message in memory.
//
// More than 65,535 records in one parking queue slow down all messages that are parked there;
// replays are refused from 60,000 on. While an alarm of the broker blocks publishers, nothing can
// be parked. A lane that changes its owner then may give messages twice that were just being
// parked, or out of their key's order.
//
// A quorum queue drops a message that it has taken back more often than its delivery limit says.
// The driver makes its queues without a limit on RabbitMQ 4. Queues that RabbitMQ 3 has made have a
// limit of 20 under RabbitMQ 4, and a policy can set any limit. A limit of 12 or more loses
// nothing:
//
//	queue     each of these counts                     nothing is lost unless
//	a lane's  a lane lost, handed over, or its         an owner dies limit − 9 times in a row
//	          process dead                             before it has read the lane's first messages
//	parking   the same, a fetch, ten minutes           an owner dies limit − 2 times in a row
//	                                                   while it reads the parked messages
//	unrouted  a first group that fails to take it over limit + 1 take-overs fail one after the other
//
// A record that was taken back three times is written anew. A message of a lane that was taken back
// ten times is parked, with its key behind it. While an alarm blocks publishers neither is
// possible; a record is then given back once in twenty minutes.
//
// Each process asks the parking queues of its lanes for their limit. If a limit is below 12,
// Receive fails and says so until the limit is changed and the process subscribes again. Set it
// with rabbitmqctl set_policy --apply-to quorum_queues NAME PATTERN '{"delivery-limit": 20}' or
// more; from RabbitMQ 4 on, -1 sets no limit.
//
// Poison entries are kept in a stream. The stream does not give space back when entries are
// removed.
//
// # Messages
//
// CloudEvents attributes are application headers with the prefix cloudEvents_ (cloudEvents: is read
// as well); the content type, id, type and time are properties, too. Three headers hold values for
// which AMQP has no place: millrace-key the key, millrace-tombstone that the payload is nil, and
// millrace-order the order of headers where it is not alphabetical. A header that repeats is a
// list. CC, BCC, x-death and other names that the broker acts upon are sent as millrace-header-CC,
// and so on. All headers of a message must fit into one frame of 128 KiB.
//
// Messages of other software are ordinary messages. The properties message-id, type, app-id,
// timestamp and content-type become id, type, source, time and content type. The property
// correlation-id becomes the header correlationid; content-encoding, reply-to and user-id become
// headers of these names. Headers are in alphabetical order. A message without an id gets an id of
// its delivery, which changes when it is delivered again.
//
// Header values of any AMQP type become text:
//
//	numbers, booleans       as in Go
//	decimals                with a point
//	times                   as RFC 3339
//	void                    as ""
//	a list of strings       as a repeated header
//	other lists, tables     as JSON
//
// Headers cannot be read if their tables nest deeper than 32, or hold more than 8,192 values. The
// message then goes to the poison queue as undecodable, with the header table and behind it the
// body as its payload.
//
// Other software publishes to the exchange with the topic's name. To take part in the order by key,
// it sets the routing key to the slot, in decimal: the 32-bit FNV-1a hash of the key's bytes,
// modulo 64. With any other routing key its messages go to lane 0 of each group. To read along, it
// binds queues of its own to the exchange. A queue there counts as a taker of the messages, so
// nothing is kept for a first group any more.
//
// # Topology
//
// For topic T and group G, all durable, and named with colons, which topics and groups cannot hold:
//
//	exchange T              fanout; alternate exchange T::unrouted
//	exchange T::unrouted    fanout, to queue T::unrouted: bounded, refuses messages beyond the bound
//	exchange T::groups      fanout, bound to T; alternate exchange T::unrouted;
//	                        there from the first group on
//	exchange T:G            direct, bound to T::groups;
//	                        alternate exchange T:G:lanes=8, fanout to lane 0
//	queue T:G:0 … T:G:7     the lanes; single active consumer;
//	                        slot s is bound to lane s modulo the number of lanes
//	queue T:G:0:parked …    the messages parked in the lanes; single active consumer
//	queue T:G:0:early …     the messages kept for the group, until they are handled
//	queue T:G:members       one consumer for each member; goes with the last
//	queue T::lock           exclusive to the process that attaches a group, while it does
//	exchange T:G:ready, T:G:moved, T:G:latest
//	                        records of how far the group has been set up
//	queue G:poison          stream of the group's poison entries
//
// Deleted exchanges and queues are made again: T and its groups by the next publisher, T:G and the
// rest by members, within seconds. Messages published while T:G is gone reach the group late, or,
// if the topic has other groups, never.
//
// A process has two connections, one that publishes and one that consumes. On the consuming
// connection, a subscription needs two channels for each lane and one more: 17 with 8 lanes. On the
// publishing connection, each topic that is published to has four channels, and each queue that the
// driver writes to has one; 128 are kept open. RabbitMQ allows 2,047 channels a connection unless
// it is configured otherwise. A first member that takes over the kept messages has a third
// connection meanwhile.
//
// The user needs the permissions to configure, write and read all names above, and to write to the
// default exchange, which is called amq.default. For topic orders and group billing:
//
//	rabbitmqctl set_permissions USER '^(orders|orders:.*|billing:poison.*)$' \
//	    '^(orders|orders:.*|billing:poison.*|amq\.default)$' '^(orders|orders:.*|billing:poison.*)$'
//
// Very long names are shortened with a hash. To remove a group that is not needed any more, delete
// its exchanges and queues, T:G first: until then its lanes keep the published messages.
//
// # Native client
//
// [bus.As] finds *amqp091.Connection, the connection that publishes, while there is one. Open
// channels of your own on it and do not close it; after a repair there is another connection. It
// also finds [driver.Pinger], and [driver.Lagger]. The Lagger counts the messages that wait in the
// group's queues and the messages that members in this process hold. Messages that members in other
// processes hold are not counted, as RabbitMQ does not tell them over AMQP.
package rabbitmq
