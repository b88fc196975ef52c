// Package parking helps drivers park messages on brokers without transactions, such as Kafka. There
// a record may be stored though nobody hears of it. The package has positions, commands, and the
// index of a lane's parked messages. Nothing in it has a lock or does I/O: the driver guards it,
// and carries out its answers.
package parking
