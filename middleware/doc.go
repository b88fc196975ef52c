// Package middleware has what services put around their handlers. Each works around single messages and batches, and
// is added with router.Use, for all handlers or for one:
//
//	r.Use(middleware.Logging(log), middleware.Correlation())
//	router.On(r, "payments", charge, router.Use(middleware.Throttle(100, 10)))
//
// The first one added is the outermost. Retries, the poison queue, timeouts and panics need no middleware: the router
// has them (router.Policy, router.Timeout).
package middleware
