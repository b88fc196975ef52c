// Package reserved has names that Millrace keeps to itself.
package reserved

// TypeStreamClosed is the type of the event with which a closed stream of an event store ends.
// Routers skip it where no handler takes it: it is no event of the application.
const TypeStreamClosed = "millrace.stream.closed"

// Topic says whether a topic's name is for Millrace's own records, such as the poison queues and
// parked messages of Kafka. Kafka takes "." and "_" for one character where it counts.
func Topic(name string) bool {
	const own = "millrace."
	return len(name) >= len(own) && name[:len(own)-1] == own[:len(own)-1] && (name[len(own)-1] == '.' || name[len(own)-1] == '_')
}
