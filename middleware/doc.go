// Package middleware has what services put around their handlers. Each works around single messages and batches, and
// is added with router.Use, for all handlers or for one:
//
//	r.Use(middleware.Logging(log), middleware.Correlation())
//	router.On(r, "payments", charge, router.Use(middleware.Throttle(100, 10)))
//
// A router retries, has a poison queue, bounds the time of a call and recovers panics by itself (router.Policy,
// router.Timeout). Retry, Poison, Timeout and Recover are for the rest of a chain, and for code without a router.
//
// # Order
//
// The first one added is the outermost. This order is right for all of them:
//
//	Logging                    sees every outcome
//	Recover                    so that what is outside meets a panic as an error
//	Correlation                its context has to reach all that publishes
//	Poison, Ignore             have the last word on an error
//	Filter, Validate           spare all of the rest what is not wanted; so does jsonschema.Validate
//	Deduplicate                a repeat needs no breaker and no rate
//	breaker.New                is not called for repeats; takes a series of tries for one call
//	Retry                      keeps no place and no token over a delay
//	Throttle, ConcurrencyLimit for each try; the wait is not the handler's time
//	Timeout                    fresh for each try
//	Chaos                      fails where handlers fail
//
// Other orders mean something else, but none loses a message: what a failed try has emitted is dropped, what has not
// succeeded in the end is not remembered, and what is to come again is not given up, wherever Retry, Poison, Ignore,
// Deduplicate and a breaker stand. A call that a wait keeps from its handler until the context ends is no try. So there is
// no order that is refused. But a time-out around a wait leaves the handler what the wait has left over: a healthy one that
// cannot do with that fails, and counts as failed. router.Timeout is around everything: give it room for the waits of
// Throttle, ConcurrencyLimit and Retry, or use Timeout inside of them instead.
//
// # Middleware of your own
//
// bus.Around makes one of a function. One that calls the handler again, or turns its failure into something else, takes
// back what the failed call has emitted (bus.Savepoint); one that has to know how a call ended asks for it (bus.OnEnd). A
// constructor with wrong arguments returns [Invalid].
package middleware
