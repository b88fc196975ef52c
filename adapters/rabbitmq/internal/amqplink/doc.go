// Package amqplink speaks AMQP 0-9-1 with RabbitMQ, on top of the client library. It knows nothing
// of topics, groups, lanes and parking.
//
// A [Link] is a connection that repairs itself; a [Session] is one connection of it, until it
// breaks. A [Pipeline] is a channel on which many callers publish, and learn each message's fate.
// [Pipelines] keeps the pipelines of a session by name. An [Attempt] is a request that many callers
// wait for.
//
// The client library has three limits that this package mends, below and above it:
//
//   - Its Write may block while it holds locks. Here Write never blocks.
//   - It ends the connection over header tables that nest too deep or are too large. Here such a
//     table arrives as one header, [UnreadableHeader].
//   - None of its requests heeds a context. An Attempt does.
package amqplink
