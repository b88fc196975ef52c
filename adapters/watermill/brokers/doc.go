// Package brokers opens Watermill's own pub/subs as buses, by URL. Import it for its effect:
//
//	import _ "github.com/millrace-go/millrace/adapters/watermill/brokers"
//
//	watermill+kafka://host:9092,host2:9092?partitions=12   watermill-kafka, acks=all, from the oldest message on
//	watermill+amqp://user:password@host:5672/vhost         watermill-amqp, durable, with publisher confirms
//	watermill+sql+postgres://user:password@host/database   watermill-sql, its default schema
//	watermill+gochannel:NAME                               gochannel, persistent, shared by the openers of NAME
//
// Services that use Watermill with the same settings share topics, groups and messages with them:
// docs/watermill.md lists the parameters, and what each pub/sub can and cannot do. A pub/sub with
// settings of its own is made into a bus by
// [github.com/millrace-go/millrace/adapters/watermill.Driver].
package brokers

import "github.com/millrace-go/millrace/bus/driver"

func init() {
	driver.Register("watermill+kafka", openKafka)
	driver.Register("watermill+amqp", openAMQP)
	driver.Register("watermill+sql+postgres", openPostgres)
	driver.Register("watermill+gochannel", openGoChannel)
}
