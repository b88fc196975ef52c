package all_test

import (
	"context"
	"strconv"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

func dropKafka(t testing.TB, b *bus.Bus, topic, group string) {
	client, ok := bus.As[*kgo.Client](b)
	if !ok {
		t.Fatal("no Kafka client")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	adm := kadm.NewClient(client)
	if _, err := adm.DeleteTopics(ctx, topic); err != nil {
		t.Error(err)
	}
	if _, err := adm.DeleteGroups(ctx, group); err != nil {
		t.Error(err)
	}
}

func dropRabbitMQ(t testing.TB, b *bus.Bus, topic, group string) {
	conn, ok := bus.As[*amqp.Connection](b)
	if !ok {
		t.Fatal("no RabbitMQ connection")
	}
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	defer ch.Close()
	group = topic + ":" + group
	for _, name := range []string{group, group + ":lanes=8", group + ":ready", group + ":moved", topic, topic + "::unrouted"} {
		if err := ch.ExchangeDelete(name, false, false); err != nil {
			t.Error(err)
		}
	}
	queues := []string{topic + "::unrouted"}
	for i := range 8 {
		lane := group + ":" + strconv.Itoa(i)
		queues = append(queues, lane, lane+":early", lane+":parked")
	}
	for _, name := range queues {
		if _, err := ch.QueueDelete(name, false, false, false); err != nil {
			t.Error(err)
		}
	}
}
