package conformance

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/router"
)

var requestChecks = []check{
	{"request/replies", requestReplies},
	{"request/late", requestLate},
}

type (
	lengthRequest struct{ Text string }
	length        struct{ N int }
)

// lengths answers with the length of a text, and refuses an empty one. It calls before first.
func (e *env) lengths(topic string, before func(ctx context.Context, text string)) {
	r := router.New(e.bus(), e.name("lengths"))
	r.Handle(topic, bus.Reply(func(ctx context.Context, q lengthRequest) (length, error) {
		before(ctx, q.Text)
		if q.Text == "" {
			return length{}, bus.Permanent(errors.New("no text"))
		}
		return length{len(q.Text)}, nil
	}))
	e.run(r)
}

// requestReplies: several buses ask at once. Each call gets the reply to its own request, or the
// refusal, and never another's.
func requestReplies(e *env) {
	topic := e.name("lengths")
	e.lengths(topic, func(context.Context, string) {})
	var calls sync.WaitGroup
	clients := []*bus.Bus{e.bus(), e.bus(), e.bus()}
	for i, b := range clients {
		for n := range 10 {
			calls.Go(func() {
				text := strings.Repeat("x", 10*i+n)
				got, err := bus.Request[length](e.ctx, b, topic, lengthRequest{text}, bus.WithKey(fmt.Sprint(n)))
				refused, ok := errors.AsType[*bus.ReplyError](err)
				switch {
				case text == "" && (!ok || refused.Text != "no text"):
					e.errorf("a refusal came as: %v", err)
				case text != "" && (err != nil || got.N != len(text)):
					e.errorf("the reply to %d letters is %d, %v", len(text), got.N, err)
				}
			})
		}
	}
	calls.Wait()
	for i, b := range clients {
		if n := b.LateReplies(); n != 0 {
			e.errorf("bus %d got %d replies that nobody waited for", i, n)
		}
	}
}

// requestLate: a reply that comes after the caller has left is dropped and counted, and the next
// request is served.
func requestLate(e *env) {
	topic := e.name("lengths")
	asked, left := make(chan struct{}), make(chan struct{})
	ask := sync.OnceFunc(func() { close(asked) })
	e.lengths(topic, func(ctx context.Context, text string) {
		if text == "slow" {
			ask()
			select {
			case <-left:
			case <-ctx.Done():
			}
		}
	})
	b := e.bus()
	leaving, leave := context.WithCancel(e.ctx)
	defer leave()
	go func() {
		select {
		case <-asked:
			leave()
		case <-e.ctx.Done():
		}
	}()
	if _, err := bus.Request[length](leaving, b, topic, lengthRequest{"slow"}); !errors.Is(err, context.Canceled) {
		e.errorf("the caller left, and was told: %v", err)
	}
	close(left)
	e.wait("the late reply to be counted", func() bool { return b.LateReplies() > 0 })
	got, err := bus.Request[length](e.ctx, b, topic, lengthRequest{"next"})
	if err != nil || got.N != len("next") {
		e.errorf("the next reply is %d, %v", got.N, err)
	}
}
