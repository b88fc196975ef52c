// Package rabbitmq is a bus on RabbitMQ, over AMQP 0-9-1.
//
// A topic is an exchange. Each group has a few queues on it, its lanes, of which each is consumed by one process at a
// time; so equal keys are handled in order by any number of processes. Connections are repaired in the background,
// and everything is declared again after that. RabbitMQ 3.10 is tested; streams (3.9 and newer) and quorum queues must
// be available. No plugin is needed.
//
// # URLs
//
//	amqp://user:password@host:5672/vhost
//	amqps://user:password@host:5671/vhost      with TLS
//
// User and password default to guest, the vhost to /. Several nodes of a cluster are separated by commas, each with its
// port: amqp://user:password@a:5672,b:5672/vhost. They are tried in this order. Parameters:
//
//	queue=quorum        the type of the queues that are created: quorum or classic
//	lanes=8             how many lanes a group has that is created (1 to 64)
//	heartbeat=10s       interval of signs of life, in whole seconds (2s to 5m); a dead link is noticed after one and a half
//	unrouted=100000     messages that are kept of a topic that is created, while it has no group (1 to 1,000,000,000)
//	maxmessage=16515072 the largest message in bytes with its headers (1024 to 536870912); the server's
//	                    max_message_size must be 256 KiB higher (it is 128 MiB before RabbitMQ 4, 16 MiB since)
//	name=               the connections' name in RabbitMQ's tools; the program's name by default
//	ca=, cert=, key=    with amqps: PEM files of the authority, the client's certificate and its key; without ca, the
//	                    system's authorities
//
// Quorum is the default because it is the safer type and, on the servers where this was measured, the faster one:
// it is replicated in a cluster, publishing took 1.3 to 2 times as many messages a second as on classic queues and
// consuming 2 to 2.5 times, at about 1 ms more latency. Classic queues are for single nodes: in a cluster, a node that is down takes
// its lanes with it, and servers before 3.11 send to lane 0 what the others cannot take, out of its keys' order, or to no lane if
// lane 0 is down, too. Type, number of lanes and bound are those that the topic or
// group was created with: a process that is configured otherwise uses what is there.
//
// # Delivery semantics
//
// Published means: RabbitMQ has confirmed that the queues of all groups that are attached to the topic have stored the
// message (quorum: on a majority of their nodes), or that it is kept because the topic has no group yet. A message that
// no queue took is an error that says so for sure. When a connection ends, or the context, what was sent and not
// confirmed is unknown, and the rest of the call is definitely not published: of a key, nothing is sent behind a message whose
// fate is unknown. While there is no connection, or the broker blocks publishers (an alarm), callers wait within their
// context. Several calls share the connection and are confirmed together; of a topic, 896 messages or 32 MiB are under way at most. A
// topic with a queue that does not confirm (it has no majority, say) takes this room, and its callers wait; other topics do not notice.
//
// A group gets what is published after it was attached to the topic. RabbitMQ has no past to read, with one exception:
// what was published while a topic had no group is kept, up to a bound beyond which it is refused, and goes to the
// first group that starts at [bus.Earliest], in order and before what is published meanwhile. (Messages that the broker
// was routing at the very moment are found within seconds and go to all groups; a crash while it is handed over can make
// repeats.) [bus.Latest] leaves it for a later group. [bus.StartAt] is not supported.
//
// Equal keys are handled in the order in which they were published: their slot decides the lane, and the lane is
// consumed by one member of the group. Members share the lanes evenly; what a member gives up it has finished and
// settled before, and the rest goes to the next member at its old place. When a process dies or a connection ends,
// what was not settled is delivered again, each key from its first unsettled message on, in order. Settling is
// acknowledged to the broker within 5 ms; after a crash, what was settled within that time is delivered again.
// Positions are those of one ownership: a message that is delivered again has another. A member that cannot be reached
// keeps its lanes until the broker misses its heartbeats.
//
// The broker delivers ahead of the handlers: at most 256 messages a lane, or a lane's share of twice the in-flight
// bound if that is more, and never more than the bound, nor than its bytes hold at 16 KiB a message. RabbitMQ cannot
// bound this by bytes: with large messages, choose a lower bound. A message that is not settled within RabbitMQ's
// consumer_timeout (30 minutes by default) is delivered again; its lane is lost for a moment.
//
// When nothing can be consumed, or not every lane, Receive says so once, after a second, and the router's Health with it: there is no
// connection, a permission is missing, a lane's queue belongs to another connection, or does not confirm because it has no
// majority. The driver goes on trying. While the node is down that has the queue of the members, they cannot be counted, and each
// keeps the lanes that it has.
//
// What is parked ([driver.ParkingSource]) is stored in a queue of its own for each lane, 50,000 messages at most, and replayed ones beside
// them. All of it is delivered to the lane's owner when it takes the lane, and again after ten minutes; so a consumer_timeout of the server
// must be longer than that. An owner keeps some two hundred bytes of each message in memory. More than 65,535 records in one such queue
// slow down all that is parked there; replays are refused from 60,000 on. While an alarm of the broker blocks publishers,
// nothing can be parked, and a lane that changes its owner then may give what was being parked twice, or out of its key's order.
//
// A quorum queue drops a message that it has taken back more often than its delivery limit says. The driver makes its queues without a
// limit on RabbitMQ 4. Queues that RabbitMQ 3 has made have one of 20 under 4, and a policy can set any; a limit of 12 or more
// loses nothing:
//
//	queue       each of these counts                          nothing is lost unless
//	a lane's    a lane lost, handed over, or its process dead an owner dies limit − 9 times in a row before it has read the lane's first messages
//	parking     the same, a fetch, ten minutes                an owner dies limit − 2 times in a row while it reads what is parked
//	unrouted    a first group that fails to take it over      limit + 1 take-overs fail one after the other
//
// A record that was taken back three times is written anew, and a message of a lane that was taken back ten times is parked, with its key behind it. While
// an alarm blocks publishers neither is possible; a record is then given back once in twenty minutes. Each process asks the parking queues of
// its lanes for their limit. If one is below 12, Receive fails and says so until it is changed and the process subscribes again: set it with
// rabbitmqctl set_policy --apply-to quorum_queues NAME PATTERN '{"delivery-limit": 20}' or more, from RabbitMQ 4 on also -1 for none.
//
// Poison entries are kept in a stream, whose space is not given back when entries are removed.
//
// # Messages
//
// CloudEvents attributes are application headers with the prefix cloudEvents_ (cloudEvents: is read as well), the
// content type, id, type and time are properties too. The headers millrace-key, millrace-tombstone and millrace-order
// hold what AMQP has no place for: the key, that the payload is nil, and the order of headers where it is not
// alphabetical. A header that repeats is a list. CC, BCC, x-death and other names that the broker acts upon are sent as
// millrace-header-CC, and so on. All headers of a message must fit into one frame of 128 KiB.
//
// Messages of other software are ordinary messages. The properties message-id, type, app-id, timestamp and content-type
// become id, type, source, time and content type; correlation-id becomes the header correlationid, and content-encoding,
// reply-to and user-id headers of these names. Header values of any AMQP type become text: numbers and booleans as
// in Go, decimals with a point, times as RFC 3339, void as "", a list of strings as a repeated header, other lists and
// tables as JSON. Headers are in alphabetical order. A message without an id has one of its delivery, which is another
// when it is delivered again. Headers whose tables nest deeper than 32, or hold more than 8,192 values, cannot be read:
// the message goes to the poison queue as undecodable, its payload being the header table and behind it the body.
//
// Other software publishes to the exchange that has the topic's name. To take part in the order by key, it sets the
// routing key to the slot, in decimal: the 32-bit FNV-1a hash of the key's bytes, modulo 64. With any other routing key
// its messages go to lane 0 of each group. To read along, it binds queues of its own to the exchange; a queue there
// counts as somebody who takes the messages, so nothing is kept for a first group any more.
//
// # Topology
//
// For topic T and group G, all durable, and named with colons, which topics and groups cannot hold:
//
//	exchange T              fanout; alternate exchange T::unrouted
//	exchange T::unrouted    fanout, to queue T::unrouted: bounded, refuses what is beyond
//	exchange T::groups      fanout, bound to T; alternate exchange T::unrouted; there from the first group on
//	exchange T:G            direct, bound to T::groups; alternate exchange T:G:lanes=8, fanout to lane 0
//	queue T:G:0 … T:G:7     the lanes; single active consumer; slot s is bound to lane s modulo the number of lanes
//	queue T:G:0:parked …    what is parked in the lanes; single active consumer
//	queue T:G:0:early …     what was kept for the group, until it is handled
//	queue T:G:members       one consumer for each member; goes with the last
//	queue T::lock           exclusive to the process that attaches a group, while it does
//	exchange T:G:ready, T:G:moved, T:G:latest   records of how far the group has been set up
//	queue G:poison          stream of the group's poison entries
//
// What somebody deletes is made again: T and its groups by the next publisher, T:G and the rest by members, within seconds. What is
// published while T:G is gone reaches the group late, or, if the topic has other groups, never.
//
// A process has two connections, one that publishes and one that consumes. On the second, a subscription needs two channels for each lane
// and one more: 17 with 8 lanes. On the first, each topic that is published to has four channels, and each queue that the driver
// writes to one; 128 are kept open. RabbitMQ allows 2,047 a connection unless it is configured otherwise. A first member that takes over
// what was kept has a third connection meanwhile.
//
// The user needs the permissions to configure, write and read what is named above, and to write to the default exchange, which is
// called amq.default. For topic orders and group billing:
//
//	rabbitmqctl set_permissions USER '^(orders|orders:.*|billing:poison.*)$' \
//	    '^(orders|orders:.*|billing:poison.*|amq\.default)$' '^(orders|orders:.*|billing:poison.*)$'
//
// Very long names are shortened with a hash. To remove a group that is not needed any more, delete its exchanges and
// queues, T:G first: until then its lanes keep what is published.
//
// # Native client
//
// [bus.As] finds *amqp091.Connection, the connection that publishes, while there is one. Open channels of your own on it
// and do not close it; after a repair there is another. It also finds [driver.Pinger], and [driver.Lagger], which counts what
// waits in the group's queues and what members in this process hold; what members in other processes hold is not
// counted, as RabbitMQ does not tell it over AMQP.
package rabbitmq
