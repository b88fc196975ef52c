// Package parking has what drivers need to park messages on brokers without transactions, such as
// Kafka, where a record may be stored though nobody hears of it: positions, commands, and the index
// of what is parked in a lane. Nothing in it has a lock or does I/O: the driver guards it, and does
// what it says.
package parking
