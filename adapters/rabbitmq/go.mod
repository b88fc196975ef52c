module github.com/millrace-go/millrace/adapters/rabbitmq

go 1.26.0

replace github.com/millrace-go/millrace => ../..

require (
	github.com/millrace-go/millrace v0.0.0
	github.com/rabbitmq/amqp091-go v1.16.0
	go.uber.org/goleak v1.3.0
)
