// Package sqllog is the engine that the SQL drivers share: a log in tables. Its dialects bring the
// client library and the statements that have to be fast.
//
// # Tables
//
//	topic   name, number of shards (fixed when the topic is created)
//	log     the messages, insert-only: topic, shard, seq (grows along a shard in the order in which rows become visible)
//	grp     a group on a topic
//	lane    one row for each group and shard: position, window, epoch, owner
//	member  the sources that are alive, each with the database time at which its lease ends
//	poison  what groups could not handle
//	meta    one row: version of the tables, identity of the installation, when old messages were last deleted
//
// Event stores have tables of their own, which are made with the first store:
//
//	store     which topics are event stores
//	event     their events: the log's columns, and version (in the stream, which is the key)
//	snapshot  a state for each stream
//
// A topic that is an event store has the negative of its number everywhere but in topic and store.
//
// # Ownership
//
// A source is a member with an id of its own that never comes back. Its lease is its member row,
// renewed by database time. While the row lives, the lanes that name the member as their owner are
// its. The first member that sees an ended lease deletes the row. A lane is unowned if its owner is
// no member. Everything that gives lanes out happens under the lock of the group's row; taking a
// lane adds one to its epoch. A position is written only where owner and epoch still match, so that
// a member that was presumed dead cannot move it. The member itself gives everything up before its
// lease ends by its own clock, counted from before the renewal was sent.
//
// One lease for a member and not one for a lane: a renewal is one row, whatever the number of
// lanes.
//
// # Settling
//
// Settle marks messages, and the committer stores the marks. A transactional source has settlements
// instead (settlement.go): transactions, the driver's own or a handler's. They store the messages
// that they settle, with outputs and parked messages. A lane's lock keeps them apart.
//
// # Goroutines
//
// Of a driver: one for each batch of messages or events under way to the database; one that tells
// other processes; one that listens to them; one that deletes old messages. Of a source: a reader,
// a committer, a keeper of its membership, and one while lanes are surrendered. All end with Close.
//
// # Locks
//
// The locks of lanes (settlement.go) are taken within a transaction, in the order of shards, before
// the rows of lanes are written. The holder of a lane's lock takes only Source.mu of the locks
// below, until its transaction is over.
//
// Source.commitMu comes before Source.observerMu, and Source.observerMu before Source.mu. The
// database is called under commitMu or no lock. An observer is called under commitMu and observerMu
// for calls that do not block, under no lock for Revoking. Driver.mu comes before hub.mu.
// appender.mu comes before hub.mu and announcer.mu. hub.mu and publisher.mu are leaves.
package sqllog
