package kafka

import "time"

// The quiet are looked after more often in tests.
func init() { watchInterval = 100 * time.Millisecond }

// PublishBuffer is the bytes of messages that may be under way.
const PublishBuffer = publishBuffer
