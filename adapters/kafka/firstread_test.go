package kafka_test

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/faults"
)

// TestConnectionsEndAtTheFirstRead: a broker that closes new connections at once looks like one
// that wants TLS. Once a connection has worked, it is an outage like another: what is published
// meanwhile waits, and goes when it ends.
func TestConnectionsEndAtTheFirstRead(t *testing.T) {
	c := fakeConfig(fakeCluster(t, kfake.NumBrokers(1)))
	through := faults.NewProxy(t, c.Brokers[0])
	var isOut atomic.Bool
	dialled := make(chan struct{}, 100)
	c.Client = []kgo.Opt{kgo.Dialer(func(ctx context.Context, network, _ string) (net.Conn, error) {
		if isOut.Load() {
			dialled <- struct{}{}
			return endsAtTheFirstRead(), nil
		}
		return (&net.Dialer{}).DialContext(ctx, network, through.Address())
	})}
	b := open(t, c)
	topic := name("t")
	onePartition(t, b, topic)

	// The first message asks for the producer's identity. That connection is lost, and so are those
	// that follow it.
	through.CutAnswer(func(request []byte) bool {
		isInit := len(request) > 6 && binary.BigEndian.Uint16(request[4:]) == uint16(kmsg.InitProducerID)
		if isInit {
			isOut.Store(true)
		}
		return isInit
	})
	published := make(chan error, 1)
	go func() { published <- b.PublishMessages(within(t), topic, &bus.Message{Payload: []byte("p")}) }()
	for range 6 {
		select {
		case <-dialled:
		case err := <-published:
			t.Fatalf("in the outage: %v", err)
		}
	}
	isOut.Store(false)
	if err := <-published; err != nil {
		t.Errorf("publish: %v", err)
	}
}

// TestOpenWithoutTLS: if no connection ever worked, the likely cause is named, soon.
func TestOpenWithoutTLS(t *testing.T) {
	c := fakeConfig(fakeCluster(t))
	c.Client = []kgo.Opt{kgo.Dialer(func(context.Context, string, string) (net.Conn, error) { return endsAtTheFirstRead(), nil })}
	_, err := kafka.Open(within(t), c)
	if err == nil || bus.IsRetryable(err) || !strings.Contains(err.Error(), "is TLS missing?") {
		t.Errorf("open: %v", err)
	}
}

// endsAtTheFirstRead is a connection to somebody who takes one request, and hangs up.
func endsAtTheFirstRead() net.Conn {
	client, server := net.Pipe()
	go func() {
		defer server.Close()
		_, _ = server.Read(make([]byte, 1<<10))
	}()
	return client
}
