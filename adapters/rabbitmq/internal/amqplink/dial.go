package amqplink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/millrace-go/millrace/bus/driver"
)

// FrameSize is the frame size that the client asks for, and RabbitMQ's own default.
const FrameSize = 128 << 10

// Dial makes a connection that is not repaired. It tries the hosts in their order.
func Dial(ctx context.Context, cfg Config, purpose string) (*Session, error) {
	var errs []error
	for _, host := range cfg.Hosts {
		conn, err := dialHost(ctx, cfg, purpose, host)
		if err == nil {
			return newSession(conn), nil
		}
		errs = append(errs, fmt.Errorf("connect to %s: %w", host, err))
		if !Retryable(err) && !isGuess(err) {
			return nil, errs[len(errs)-1] // what one node refuses, the other nodes of the cluster refuse, too
		}
	}
	return nil, errors.Join(errs...)
}

// dialHost bounds each host, so that a host that does not answer leaves time for the others.
func dialHost(ctx context.Context, cfg Config, purpose, host string) (*amqp.Connection, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	user, password, err := cfg.Credentials()
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", host)
	if err != nil {
		return nil, err
	}
	if cfg.TLS != nil {
		c := cfg.TLS.Clone()
		if c.ServerName == "" {
			c.ServerName, _, _ = net.SplitHostPort(host)
		}
		client := tls.Client(conn, c)
		if err := client.HandshakeContext(ctx); err != nil {
			conn.Close()
			return nil, err
		}
		conn = client
	}
	p := newPipe(conn)
	stop := context.AfterFunc(ctx, func() { conn.Close() }) // the AMQP handshake knows no context
	defer stop()
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName(cfg.Name + " " + purpose)
	c, err := amqp.Open(p, amqp.Config{
		SASL:       []amqp.Authentication{&amqp.PlainAuth{Username: user, Password: password}},
		Vhost:      cfg.VHost,
		FrameSize:  FrameSize,
		Heartbeat:  cfg.Heartbeat,
		Properties: properties,
		Locale:     "en_US",
	})
	if err == nil && !stop() {
		err = ctx.Err() // too late: the connection is closed already, or about to be
	}
	if err != nil {
		p.Close()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		if last := p.lastWords(); driver.IsTLSRefusal(last) {
			return nil, last
		}
		return nil, err
	}
	return c, nil
}
