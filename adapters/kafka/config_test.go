package kafka_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
)

func TestParseURL(t *testing.T) {
	c, err := kafka.ParseURL("kafka://h1:19092,h2:19093/?linger=5ms&compression=lz4&maxmessage=5000&timeout=2s&partitions=6&replication=3&instance=pod-1&session=20s&rack=r1&commit=1s")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.Brokers, []string{"h1:19092", "h2:19093"}) || c.Linger != 5*time.Millisecond || c.Compression != "lz4" || c.MaxMessage != 5000 ||
		c.PublishTimeout != 2*time.Second || c.Partitions != 6 || c.Replication != 3 || c.Instance != "pod-1" || c.SessionTimeout != 20*time.Second ||
		c.Rack != "r1" || c.CommitInterval != time.Second || c.TLS != nil || c.SASL != nil {
		t.Errorf("%+v", c)
	}
	for url, brokers := range map[string][]string{
		"kafka://h1,h2:7":   {"h1:9092", "h2:7"},
		"kafka://h1":        {"h1:9092"},
		"kafka://[::1]:7":   {"[::1]:7"},
		"kafka://[::1]":     {"[::1]:9092"},
		"kafka://h1?linger": nil,
	} {
		c, err := kafka.ParseURL(url)
		if !slices.Equal(c.Brokers, brokers) || (err == nil) != (brokers != nil) {
			t.Errorf("%s: %v, %v", url, c.Brokers, err)
		}
	}
	c, err = kafka.ParseURL("kafka://user:pass%2Fword@h?sasl=scram-sha-256&tls=true")
	if err != nil || c.SASL == nil || c.SASL.Name() != "SCRAM-SHA-256" || c.TLS == nil {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestParseURLMistakes(t *testing.T) {
	for url, want := range map[string]string{
		"amqp://h":                           "want kafka",
		"kafka://":                           "want HOST",
		"kafka://h1,,h2":                     "want HOST",
		"kafka://h/orders":                   "without a path",
		"kafka:h":                            "want kafka://HOST",
		"kafka://h?linger=1h":                `parameter "linger" is "1h": want a duration between 0s and 10s`,
		"kafka://h?compression=rar":          "want one of snappy, none, lz4, zstd, gzip",
		"kafka://h?partitions=x":             "whole number between 0 and 10000",
		"kafka://h?tls=yes":                  "want one of false, true",
		"kafka://h?group=x":                  `parameter "group" is unknown: want one of ca, cert, commit, compression`,
		"kafka://h?commit=0s":                "between 1ms and 1m0s",
		"kafka://u:hunter2@h":                "how they are sent: plain, scram-sha-256 or scram-sha-512",
		"kafka://u@h?sasl=plain":             "want kafka://USER:PASSWORD@HOST",
		"kafka://h?sasl=plain":               "want kafka://USER:PASSWORD@HOST",
		"kafka://u:hunter2@h?sasl=md5&rack=": "want one of none, plain",
	} {
		_, err := kafka.ParseURL(url)
		if err == nil || !strings.Contains(err.Error(), want) || !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
		if strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), "hunter2") {
			t.Errorf("%s: the error holds the password: %v", url, err)
		}
	}
	_, err := kafka.ParseURL("kafka://h?linger=x&partitions=y&what=z")
	for _, want := range []string{"linger", "partitions", "what"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not tell of %s", err, want)
		}
	}
}

func TestConfigMistakes(t *testing.T) {
	for _, tc := range []struct {
		c    kafka.Config
		want string
	}{
		{kafka.Config{}, "Brokers is empty: want at least one address"},
		{kafka.Config{Brokers: []string{""}}, "want HOST or HOST:PORT"},
		{kafka.Config{Brokers: []string{"h"}, Compression: "rar"}, `Compression is "rar": want one of snappy, none`},
		{kafka.Config{Brokers: []string{"h"}, Linger: -1}, "Linger is -1ns: want 0s to 10s"},
		{kafka.Config{Brokers: []string{"h"}, MaxMessage: 1}, "MaxMessage is 1: want 1024 to 67108864"},
		{kafka.Config{Brokers: []string{"h"}, Partitions: -1, Replication: -2}, "Partitions is -1: want 0 to 10000\nReplication is -2"},
		{kafka.Config{Brokers: []string{"h"}, Client: []kgo.Opt{kgo.RequiredAcks(kgo.NoAck())}}, "idempotency requires acks=all"},
	} {
		b, err := kafka.Open(within(t), tc.c)
		if err == nil {
			_ = b.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) || !errors.Is(err, bus.ErrInvalid) {
			t.Errorf("%+v: %v, want %q", tc.c, err, tc.want)
		}
	}
}

func TestOpenFindsNobody(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	_ = l.Close()
	begin := time.Now()
	_, err = bus.Open(within(t), "kafka://"+nobody, bus.WithConnectTimeout(300*time.Millisecond))
	if e, ok := errors.AsType[*bus.Error](err); !ok || e.Op != "open" || !e.Retryable || !strings.Contains(err.Error(), nobody) {
		t.Errorf("%v", err)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("returned after %v", d)
	}
}

// certificate makes a server's certificate for 127.0.0.1, and a client configuration that trusts
// it.
func certificate(tb testing.TB) (server, client *tls.Config) {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: pool}
}

func TestTLSAndSASL(t *testing.T) {
	server, client := certificate(t)
	c := fakeCluster(t, kfake.TLS(server), kfake.EnableSASL(),
		kfake.Superuser("PLAIN", "p", "plain secret"), kfake.Superuser("SCRAM-SHA-256", "s", "scram secret"), kfake.Superuser("SCRAM-SHA-512", "l", "long secret"))
	config := fakeConfig(c)
	config.TLS = client
	work := func(t *testing.T, b *bus.Bus) {
		topic := name("t")
		publish(t, b, topic, texts("x")...)
		s := subscribe(t, b, topic, name("g"), bus.Earliest, newObserver())
		settle(t, s, receive(t, s, 1)...)
	}
	config.SASL = plain.Auth{User: "p", Pass: "plain secret"}.AsMechanism()
	work(t, open(t, config))
	config.SASL = scram.Auth{User: "s", Pass: "scram secret"}.AsSha256Mechanism()
	work(t, open(t, config))
	config.SASL = scram.Auth{User: "l", Pass: "long secret"}.AsSha512Mechanism()
	work(t, open(t, config))

	config.SASL = plain.Auth{User: "p", Pass: "hunter2"}.AsMechanism()
	// Kafka says so and Open returns at once; this cluster hangs up, which may be anything.
	if _, err := kafka.Open(shortly(t), config); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
	begin := time.Now()
	config.TLS = &tls.Config{}
	if _, err := kafka.Open(within(t), config); !strings.Contains(fmt.Sprint(err), "certificate") {
		t.Error(err)
	}
	config.TLS = nil
	if _, err := kafka.Open(within(t), config); err == nil {
		t.Error("opened without TLS")
	} else {
		t.Log(err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("the refusals took %v", d)
	}
}

// TestURLWithSASL goes the way of a URL, without TLS: its certificate would have to be the
// system's.
func TestURLWithSASL(t *testing.T) {
	c := fakeCluster(t, kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "us er", "p/@?:w"))
	b, err := bus.Open(within(t), "kafka://us%20er:p%2F%40%3F%3Aw@"+strings.Join(c.ListenAddrs(), ",")+"?sasl=scram-sha-512&partitions=2")
	if err != nil {
		t.Fatal(err)
	}
	publish(t, b, "t", texts("x")...)
	if n := len(c.PartitionInfos("t")); n != 2 {
		t.Errorf("%d partitions", n)
	}
	if err := b.Ping(within(t)); err != nil {
		t.Error(err)
	}
	client, ok := bus.As[*kgo.Client](b)
	if !ok || client.Ping(context.Background()) != nil {
		t.Error("the native client does not come out")
	}
	if caps := b.Driver().Capabilities(); caps.Broker != "kafka" || !caps.Durable || !caps.Replay || !caps.StartAt {
		t.Errorf("%+v", caps)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := b.Ping(within(t)); !errors.Is(err, bus.ErrClosed) {
		t.Error(err)
	}
}
