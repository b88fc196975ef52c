package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// HeaderReplyTo names the topic that a request's reply is expected on.
const HeaderReplyTo = "replyto"

// HeaderReplyError marks a reply that says why there is no result: its value is the code, the payload the text.
const HeaderReplyError = "replyerror"

// DefaultRequestTimeout bounds a [Request] whose context has no deadline.
const DefaultRequestTimeout = 30 * time.Second

// ReplyError is a reply that refuses a request. A handler may return one to choose the code; wrapped or not, it is
// final.
type ReplyError struct {
	// Code is for programs. The codes of this package are "undecodable" for a request that the handler cannot read, and
	// "failed" for an error without a code of its own.
	Code string
	// Text is for people: the handler's error, as it is.
	Text string
}

func (e *ReplyError) Error() string { return "refused (" + e.Code + "): " + e.Text }

// Request publishes req to topic and waits for one reply, from a handler made by [Reply], until ctx ends or the bus is
// closed. Without a deadline in ctx it waits 30 s. A handler that refuses is a [*ReplyError].
//
// The request is a message like any other: durable, ordered by its key, delivered again after a crash, so that its
// handler may see it more than once, and still handled when the caller has left. Each group of the topic handles it; the
// first reply counts. A handler's failure that is retried delays the reply.
//
// The first request of a bus opens its inbox, a topic with one group: on Kafka that takes some seconds. Then it stays
// open until the bus is closed. Its names are new for each bus, and what a broker has declared for them stays behind when
// the bus is closed (a topic of Kafka, exchanges and queues of RabbitMQ, a few rows of SQL). A service that makes requests
// names its inbox by [WithInbox], by its instance say, or the broker has to be swept of names that begin with
// "replies-". Where topics are not created on first use, as on Kafka without partitions=N, the inbox needs a name and has
// to exist.
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

// LateReplies counts replies for which nobody waited: the caller had left, or an earlier reply had come. They are
// dropped.
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
		err = fmt.Errorf("no reply after %v (is there a handler for it, and is the request in its poison queue?): %w", time.Since(start).Round(time.Millisecond), context.Cause(ctx))
	}
	b.inbox.forget(m.ID, reply)
	select {
	case r := <-reply: // at the same moment
		return arrived(r)
	default:
		return nil, err
	}
}

// arrived is what came for a request; nil if the inbox ended.
func arrived(r *Message) (*Message, error) {
	if r == nil {
		return nil, errInboxLost
	}
	return r, nil
}

var errInboxLost = errors.New("the driver has closed the inbox for replies; the next request opens another")
