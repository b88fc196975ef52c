package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// HeaderReplyTo names the topic for a request's reply.
const HeaderReplyTo = "replyto"

// HeaderReplyError marks a reply without a result. The header's value is the code, the payload the
// text.
const HeaderReplyError = "replyerror"

// DefaultRequestTimeout bounds a [Request] if its context has no deadline.
const DefaultRequestTimeout = 30 * time.Second

// ReplyError is a reply that refuses a request. A handler may return one to choose the code. It is
// final, wrapped or not.
type ReplyError struct {
	// Code is for programs. This package uses "undecodable" for a request that the handler cannot
	// read, and "failed" for an error without a code.
	Code string
	// Text is for people: the handler's error text, unchanged.
	Text string
}

func (e *ReplyError) Error() string { return "refused (" + e.Code + "): " + e.Text }

// Request publishes req to topic and waits for one reply, from a handler made by [Reply]. It waits
// until ctx ends or the bus is closed; without a deadline in ctx it waits 30 s. If the handler
// refuses, the error is a [*ReplyError]. It is safe for concurrent use.
//
// The request is a message like any other: durable, ordered by its key, and delivered again after a
// crash. So its handler may see it more than once, and handles it even after the caller has left.
// Each group of the topic handles it; the first reply counts. A retried failure of the handler
// delays the reply.
//
// The first request of a bus opens its inbox, a topic with one group: on Kafka that takes some
// seconds. The inbox stays open until the bus is closed. Its names are new for each bus. The
// broker's declarations for them stay behind (a topic of Kafka, exchanges and queues of RabbitMQ, a
// few rows of SQL).
//
// A service that makes requests should name its inbox by [WithInbox], for example after its
// instance. Otherwise sweep the broker of names that begin with "replies-". Where topics are not
// created on first use, as on Kafka without partitions=N, the inbox needs a name and must exist.
func Request[Resp any](ctx context.Context, b *Bus, topic string, req any, opts ...PublishOption) (Resp, error) {
	var resp Resp
	reply, err := b.request(ctx, topic, req, opts)
	if err != nil {
		return resp, fmt.Errorf("request %q: %w", topic, err)
	}
	if code := reply.Headers.Get(HeaderReplyError); code != "" {
		return resp, fmt.Errorf("request %q: %w", topic, &ReplyError{Code: code, Text: string(reply.Payload)})
	}
	if err := b.Decode(reply, &resp); err != nil {
		return resp, fmt.Errorf("request %q: the reply: %w", topic, err)
	}
	return resp, nil
}

// LateReplies counts replies without a waiting caller: the caller had left, or an earlier reply had
// come. They are dropped.
func (b *Bus) LateReplies() uint64 { return b.inbox.late.Load() }

func (b *Bus) request(ctx context.Context, topic string, req any, opts []PublishOption) (*Message, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, DefaultRequestTimeout)
		defer cancel()
	}
	start := time.Now()
	in, err := b.inbox.open(ctx, b)
	if err != nil {
		return nil, fmt.Errorf("open the inbox for replies: %w", err)
	}
	toHere := func(m *Message) { m.Headers.Set(HeaderReplyTo, in.name) }
	m, err := b.encode(req, append(slices.Clip(opts), toHere))
	if err != nil {
		return nil, err
	}
	if m.ID == "" {
		m.ID = NewID()
	}
	reply, err := b.inbox.expect(in, m.ID)
	if err != nil {
		return nil, err
	}
	defer b.inbox.forget(m.ID, reply)
	if err := b.Publish(ctx, topic, m); err != nil {
		return nil, err
	}
	select {
	case r := <-reply:
		return arrived(r)
	case <-b.closed:
		err = ErrClosed
	case <-ctx.Done():
		err = fmt.Errorf("no reply after %v (does a handler run, and is the request in its poison queue?): %w", time.Since(start).Round(time.Millisecond), context.Cause(ctx))
	}
	b.inbox.forget(m.ID, reply)
	select {
	case r := <-reply: // at the same moment
		return arrived(r)
	default:
		return nil, err
	}
}

// arrived is the reply to a request; nil if the inbox ended.
func arrived(r *Message) (*Message, error) {
	if r == nil {
		return nil, errInboxLost
	}
	return r, nil
}

var errInboxLost = errors.New("the driver has closed the inbox for replies; the next request opens another")
