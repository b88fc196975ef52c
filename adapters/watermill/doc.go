// Package watermill joins Millrace and Watermill (github.com/ThreeDotsLabs/watermill), in both
// directions:
//
//   - [Driver] makes any Watermill pub/sub a Millrace driver, and so reaches the brokers that Millrace has no driver of its
//     own for. Package brokers below this one opens Watermill's own for Kafka, AMQP, PostgreSQL and memory by URL.
//   - [Publisher] and [Subscriber] make a Millrace bus a Watermill pub/sub, for Watermill's routers and components.
//   - [Middleware], [Handler] and [HandlerMiddleware] carry handlers and middleware across.
//   - [ToWatermill], [FromWatermill], [Shared], [Wrap] and [Unwrap] are the wire formats, so that services of both kinds share
//     topics while handlers move from one to the other: see docs/migrating-from-watermill.md.
package watermill
