// Package reserved has names that Millrace keeps to itself.
package reserved

// TypeStreamClosed is the type of the event with which a closed stream of an event store ends.
// Routers skip it where no handler takes it: it is no event of the application.
const TypeStreamClosed = "millrace.stream.closed"
