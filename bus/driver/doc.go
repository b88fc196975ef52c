// Package driver is the contract between Millrace and a broker. Authors of drivers, routers and
// tools read it; applications use package bus, and never this one.
//
// A driver implements [Driver] and calls [Register] from init. Package conformance proves that it
// keeps the contract. Driver, [bus.Source] and [bus.LaneObserver] state a driver's duties. All else
// is an optional ability: an interface that the driver, or its sources, may implement.
//
// # Optional abilities
//
//	ability               of       found by           for                                          drivers
//	[Pinger]              driver   bus.As             Bus.Ping and health                          all but memory
//	[Lagger]              driver   bus.As             the number of messages a group has to handle all
//	[Injector]            driver   bus.As             replays; its sources are [ParkingSource]     all
//	[TransactionHost]     driver   bus.As             its sources are [JoiningSource]              PostgreSQL, MySQL, SQLite
//	[Committer]           source   type assertion     settlements that become durable later        Kafka, RabbitMQ, SQL
//	[ParkingSource]       source   type assertion     delays and retries that survive a restart    all
//	[TransactionalSource] source   type assertion     exactly once within the broker               Kafka, SQL
//	[JoiningSource]       source   type assertion     settling in the handler's own transaction    PostgreSQL, MySQL, SQLite
//
// The observer of a subscription may have an ability, too: [ConditionObserver] is told of
// conditions, [ParkingObserver] of parked messages.
//
// [bus.Capabilities] claim what sources can do. The router refuses a source that lacks what its
// driver claims: a driver around another driver loses a method set easily, and nothing else would
// notice.
//
// A driver that wraps another driver has a method As(target any) bool. [bus.As] asks it for
// abilities that the wrapper lacks.
package driver
