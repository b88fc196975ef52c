package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Reply makes a handler that answers requests ([Request]). It emits the result of h to the topic
// that the request names, so the answer is published with h's success. A request without a reply
// topic is handled, and its result is dropped.
//
// The reply topic must be an inbox: a name that begins with "replies-", as a bus gives it. A request
// comes from anybody, and must not have the service publish anywhere with its own rights. A request
// that names another topic fails for good, before h is called, unless router.ReplyTo allows it.
//
// An error that no retry can help is the answer: the caller gets its text, h's emitted messages are
// dropped, and the request is settled, not poisoned. These are errors marked by [Permanent] or
// [Ignore], a [*ReplyError], and a request that cannot be decoded. Other errors are retried by the
// router's policy while the caller waits. If the policy gives up, the caller gets no answer.
//
// A request may come twice, like every message. So may its answer; the second is dropped.
func Reply[Req, Resp any](h func(ctx context.Context, req Req) (Resp, error)) Handler {
	return replier[Req, Resp]{h: h}
}

// inboxPrefix begins the name of each inbox.
const inboxPrefix = "replies-"

type replier[Req, Resp any] struct {
	h       func(context.Context, Req) (Resp, error)
	allowed []string // topics that get replies although they are no inboxes
}

// AllowReplies returns a handler that also replies to topics; routers call it.
func (r replier[Req, Resp]) AllowReplies(topics []string) Handler {
	r.allowed = topics
	return r
}

// checkReplyTo reports why a topic gets no replies.
func (r replier[Req, Resp]) checkReplyTo(topic string) error {
	if topic == "" || strings.HasPrefix(topic, inboxPrefix) || slices.Contains(r.allowed, topic) {
		return nil
	}
	return Permanent(fmt.Errorf("%w: the request wants its reply on the topic %.60q, which is no inbox (%q and more): router.ReplyTo allows other topics", ErrInvalid, topic, inboxPrefix))
}

// EventTypes implements EventTyper.
func (r replier[Req, Resp]) EventTypes() []string { return typesOf[Req]() }

// Check implements Checker.
func (r replier[Req, Resp]) Check() error { return checkTyped[Req](r.h == nil) }

// Handle implements Handler.
func (r replier[Req, Resp]) Handle(ctx context.Context, m *Message) error {
	to := m.Headers.Get(HeaderReplyTo)
	if err := r.checkReplyTo(to); err != nil {
		return err
	}
	rollback := Savepoint(ctx)
	resp, err := r.answer(ctx, m)
	if err == nil {
		if to == "" {
			return nil
		}
		if err = emitReply(ctx, to, resp, m); !errors.Is(err, ErrTooLarge) && !errors.Is(err, ErrInvalid) || IsPermanent(err) {
			return err
		}
		err = Permanent(fmt.Errorf("the reply cannot be published: %w", err))
	}
	refusal := refusalOf(err)
	switch {
	case refusal == nil:
		return err
	case to == "":
		if _, final := errors.AsType[*ReplyError](err); final && !IsIgnored(err) {
			return Permanent(err)
		}
		return err
	}
	rollback()
	return emitReply(ctx, to, &Message{
		ContentType: "text/plain",
		Payload:     []byte(refusal.Text),
		Headers:     Headers{{Name: HeaderReplyError, Value: refusal.Code}},
	}, m)
}

func (r replier[Req, Resp]) answer(ctx context.Context, m *Message) (resp Resp, err error) {
	var req Req
	if err := decodeFor(ctx, m, &req); err != nil {
		return resp, err
	}
	return r.h(ctx, req)
}

// emitReply emits to the address in the request. An invalid address stays invalid, so it is not
// retried.
func emitReply(ctx context.Context, to string, event any, request *Message) error {
	if err := checkName("reply topic", to); err != nil {
		return Permanent(err)
	}
	return Emit(ctx, to, event, WithCause(request))
}

// refusalOf is the caller's answer about an error that no retry can help; nil for others.
func refusalOf(err error) *ReplyError {
	if r, ok := errors.AsType[*ReplyError](err); ok {
		code := r.Code
		if code == "" {
			code = "failed"
		}
		return &ReplyError{Code: code, Text: r.Text}
	}
	if errors.Is(err, ErrUndecodable) {
		return &ReplyError{Code: "undecodable", Text: err.Error()}
	}
	if IsPermanent(err) || IsIgnored(err) {
		return &ReplyError{Code: "failed", Text: err.Error()}
	}
	return nil
}
