// Command migration moves a handler from Watermill to Millrace while orders keep coming, on Kafka
// and on RabbitMQ, and checks in a ledger that none of them was lost.
//
//	GOWORK=off go run ./examples/migration --kafka kafka://localhost:9092?partitions=8 --rabbitmq amqp://guest:guest@localhost/
//
// docs/migrating-from-watermill.md explains the steps.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"
)

func main() {
	kafkaURL := flag.String("kafka", os.Getenv("MILLRACE_KAFKA_URL"), "`URL` of Kafka; empty leaves it out")
	rabbitURL := flag.String("rabbitmq", os.Getenv("MILLRACE_RABBITMQ_URL"), "`URL` of RabbitMQ; empty leaves it out")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := migrate(ctx, *kafkaURL, *rabbitURL, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "migration:", err)
		os.Exit(1)
	}
}

// migrate runs the scenarios of the brokers that have a URL.
func migrate(ctx context.Context, kafkaURL, rabbitURL string, out io.Writer) error {
	if kafkaURL == "" && rabbitURL == "" {
		return errors.New("want --kafka URL or --rabbitmq URL")
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	var errs []error
	if kafkaURL != "" {
		errs = append(errs, migrateKafka(ctx, kafkaURL, out))
	}
	if rabbitURL != "" {
		errs = append(errs, migrateRabbitMQ(ctx, rabbitURL, out))
	}
	return errors.Join(errs...)
}
