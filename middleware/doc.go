// Package middleware has the usual middleware of services. Each works around single messages and
// batches. Add it with router.Use, for all handlers or for one:
//
//	r.Use(middleware.Logging(log), middleware.Correlation())
//	router.On(r, "payments", charge, router.Use(middleware.Throttle(100, 10)))
//
// A router by itself retries, has a poison queue, bounds the time of a call and recovers panics
// (router.Policy, router.Timeout). Retry, Poison, Timeout and Recover are for a part of a chain,
// and for code without a router.
//
// # Order
//
// The first middleware added is the outermost. This order is right for all of them:
//
//	Logging                    sees every outcome
//	Recover                    so that middleware outside meets a panic as an error
//	Correlation                its context must reach all middleware that publishes
//	Poison, Ignore             have the last word on an error
//	Filter, Validate           spare the rest unwanted messages; so does jsonschema.Validate
//	Deduplicate                a repeat needs no breaker and no rate
//	breaker.New                is not called for repeats; takes a series of tries for one call
//	Retry                      keeps no place and no token over a delay
//	Throttle, ConcurrencyLimit for each try; the wait is not the handler's time
//	Timeout                    fresh for each try
//	Chaos                      fails where handlers fail
//
// Other orders have other meanings, but none loses a message, and none is refused. Wherever Retry,
// Poison, Ignore, Deduplicate and a breaker stand:
//
//   - messages emitted by a failed try are dropped,
//   - a message that has not succeeded in the end is not remembered,
//   - a message that should come again is not given up,
//   - a call that waits until its context ends, and never reaches its handler, is no try.
//
// Note: within a time-out around a wait, the handler has only the time that the wait has left. If
// that is too short, a healthy handler fails, and the failure counts. router.Timeout is around
// everything: give it room for the waits of Throttle, ConcurrencyLimit and Retry, or use Timeout
// inside of them instead.
//
// # Middleware of your own
//
// bus.Around makes a middleware of a function. A middleware that calls the handler again, or
// changes its failure, takes back the messages emitted by the failed call (bus.Savepoint). A
// middleware that must know how a call ended registers for it (bus.OnEnd). A constructor with wrong
// arguments returns [Invalid].
package middleware
