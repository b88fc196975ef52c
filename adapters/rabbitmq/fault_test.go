package rabbitmq

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/faults"
)

// ends makes messages, one for each slot. Behind them no message published before is missing.
func ends(prefix string) []*bus.Message {
	var ms []*bus.Message
	seen := map[int]bool{}
	for i := 0; len(seen) < slots; i++ {
		if key := fmt.Sprintf("end%d", i); !seen[slot(key)] {
			seen[slot(key)] = true
			ms = append(ms, message(prefix+key, key))
		}
	}
	return ms
}

// Connections break while many publish. A message is there if its publish returned nil, and not
// there if its publish said that it is definitely not published. Keys are in order as far as their
// messages are known to be published.
func TestPublishThroughCuts(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	direct := openDriver(t, brokerConfig(t))
	s := subscribe(t, direct, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	d := openDriver(t, c)

	var mu sync.Mutex
	outcome := map[string]error{}
	var publishers sync.WaitGroup
	published := make(chan struct{}, 1000)
	for w := range 8 {
		publishers.Go(func() {
			for n := range 60 {
				var ms []*bus.Message
				for i := range 1 + w*5 {
					ms = append(ms, message(fmt.Sprintf("w%d-%03d-%02d", w, n, i), fmt.Sprintf("w%d", w)))
				}
				err := d.Publish(ctx, topic, ms)
				pe, _ := errors.AsType[*bus.PublishError](err)
				if err != nil && pe == nil {
					t.Errorf("not a PublishError: %v", err)
				}
				mu.Lock()
				for i, m := range ms {
					outcome[m.ID] = nil
					if pe != nil {
						outcome[m.ID] = pe.Errs[i]
					}
				}
				mu.Unlock()
				published <- struct{}{}
			}
		})
	}
	for n := range 8 * 60 {
		<-published
		if n%80 == 79 {
			p.Cut()
		}
	}
	publishers.Wait()
	last := ends("")
	publish(t, direct, topic, last...)

	got := map[string]int{}
	lastOf := map[string]string{}
	for waiting := len(last); waiting > 0; {
		for _, m := range receive(t, ctx, s, 1) {
			if got[m.ID]++; m.ID[0] == 'e' {
				waiting--
			} else if outcome[m.ID] == nil {
				if m.ID <= lastOf[m.Key] {
					t.Errorf("key %s: %s after %s", m.Key, m.ID, lastOf[m.Key])
				}
				lastOf[m.Key] = m.ID
			}
			settle(t, s, []bus.Delivery{m})
		}
	}
	var durable, definite, unknown int
	for id, err := range outcome {
		switch {
		case err == nil:
			durable++
			if got[id] != 1 {
				t.Errorf("%s was published, and came %d times", id, got[id])
			}
		case bus.IsDefinite(err):
			definite++
			if got[id] != 0 {
				t.Errorf("%s came, though %v", id, err)
			}
		default:
			unknown++
		}
		if err != nil && !bus.IsRetryable(err) {
			t.Errorf("%s: not retryable: %v", id, err)
		}
	}
	t.Logf("%d durable, %d definitely not, %d unknown", durable, definite, unknown)
	if unknown == 0 {
		t.Error("no cut met a publish: the test shows nothing")
	}
}

// While there is no connection, a publisher waits within its context, and learns that nothing was
// sent.
func TestPublishWhileDown(t *testing.T) {
	topic := newTopic(t)
	p, c := newProxy(t)
	d := openDriver(t, c)
	publish(t, d, topic, message("m1", ""))
	session := d.pub.link.Current()
	p.Refuse(true)
	<-session.Done
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	err := d.Publish(ctx, topic, []*bus.Message{message("m2", "")})
	if !bus.IsDefinite(err) || !bus.IsRetryable(err) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while down: %v", err)
	}
	done := make(chan error)
	go func() { done <- d.Publish(testContext(t), topic, []*bus.Message{message("m3", "")}) }()
	p.Refuse(false)
	if err := <-done; err != nil {
		t.Errorf("after: %v", err)
	}
}

// A link that takes nothing more holds nobody beyond the context, neither publishers nor Close.
func TestStalledLink(t *testing.T) {
	topic := newTopic(t)
	p, c := newProxy(t)
	d, err := open(testContext(t), c)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, d, topic, message("m1", ""))
	p.Stall(faults.ToServer, true)
	big := make([]byte, 1<<20)
	var publishers sync.WaitGroup
	for w := range 8 {
		publishers.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			defer cancel()
			var ms []*bus.Message
			for i := range 10 {
				m := message(fmt.Sprintf("s%d-%d", w, i), "")
				m.Payload = big
				ms = append(ms, m)
			}
			err := d.Publish(ctx, topic, ms)
			pe, ok := errors.AsType[*bus.PublishError](err)
			if !ok {
				t.Errorf("publish: %v", err)
				return
			}
			// The fate of the messages sent first is unknown; messages without room are definitely
			// not published.
			if e := pe.Errs[0]; !errors.Is(e, context.DeadlineExceeded) {
				t.Errorf("first: %v", e)
			}
			if w == 0 && bus.IsDefinite(pe.Errs[0]) && bus.IsDefinite(err) {
				return
			}
		})
	}
	publishers.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	start := time.Now()
	_ = d.Close(ctx)
	if took := time.Since(start); took > 3*time.Second {
		t.Errorf("close took %v", took)
	}
	p.Stall(faults.ToServer, false)
	<-d.closed
}

// While the broker blocks publishers (an alarm), they wait within their context, and nothing is
// sent.
func TestBlockedByBroker(t *testing.T) {
	topic := newTopic(t)
	p, c := newProxy(t)
	d := openDriver(t, c)
	publish(t, d, topic, message("1", ""))
	session := d.pub.link.Current()
	p.block(t, session, "low on memory")
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	err := d.Publish(ctx, topic, []*bus.Message{message("2", "")})
	if !bus.IsDefinite(err) || !bus.IsRetryable(err) || !strings.Contains(err.Error(), "low on memory") {
		t.Error(err)
	}
	done := make(chan error, 2)
	go func() { done <- d.Publish(testContext(t), topic, []*bus.Message{message("3", "")}) }()
	p.unblock(session)
	if err := <-done; err != nil {
		t.Error(err)
	}
	// Close does not wait for those that have sent nothing.
	p.block(t, session, "")
	go func() { done <- d.Publish(testContext(t), topic, []*bus.Message{message("4", "")}) }()
	if err := d.Close(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := <-done; !errors.Is(err, bus.ErrClosed) || !bus.IsDefinite(err) {
		t.Error(err)
	}
}

// The broker closes one lane's channel, as it does over a message that is not settled for 30
// minutes. The lane is lost and comes back, and the connection goes on.
func TestChannelClosedByBroker(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	d := openDriver(t, brokerConfig(t))
	o := newObserver()
	src := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, DefaultLanes)
	session := d.consume.Current()
	publish(t, d, topic, messages(0, 10, 1)...)
	got := receive(t, ctx, src, 10)
	settle(t, src, got[:3])
	own := src.(*source).lanes[got[0].Lane].current.Load()
	own.expire() // the commit interval has passed
	if err := own.ch.Ack(99_999, false); err != nil {
		t.Fatal(err)
	}
	o.wait(t, ctx, "the lane to be lost", func() bool { return len(o.lost) == 1 })
	if err := src.Settle(ctx, tokens(got[3:])); !errors.Is(err, bus.ErrStale) {
		t.Error(err)
	}
	again := receive(t, ctx, src, 7)
	checkOrder(t, again, 3, 10)
	settle(t, src, again)
	if again[0].Epoch == got[0].Epoch || d.consume.Current() != session {
		t.Error("the epoch is the same, or the connection is another")
	}
}

// A member is cut off. Another takes its lanes, and nothing is lost.
func TestMemberDies(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	dying, living := openDriver(t, c), openDriver(t, brokerConfig(t))
	sub := bus.Subscription{Topic: topic, Group: "g", InFlight: 100}
	oa, ob := newObserver(), newObserver()
	a, b := subscribe(t, dying, sub, oa), subscribe(t, living, sub, ob)
	oa.waitLanes(t, ctx, DefaultLanes/2)
	ob.waitLanes(t, ctx, DefaultLanes/2)
	publish(t, living, topic, messages(0, 400, 100)...)
	got := receive(t, ctx, a, 50) // and settles nothing
	p.Refuse(true)
	oa.waitLanes(t, ctx, 0)
	ob.waitLanes(t, ctx, DefaultLanes)
	if err := a.Settle(ctx, tokens(got)); !errors.Is(err, bus.ErrStale) {
		t.Error(err)
	}
	all := receive(t, ctx, b, 400)
	checkOrder(t, all, 0, 400)
	settle(t, b, all)
	p.Refuse(false)
	oa.waitLanes(t, ctx, DefaultLanes/2)
	ob.waitLanes(t, ctx, DefaultLanes/2)
}

// Connections break while a group consumes and settles. Nothing is lost, and only messages that
// were not settled for sure come again. Each key's order is kept apart from repeats, and tokens of
// lost lanes settle nothing.
func TestConsumeThroughCuts(t *testing.T) {
	for _, queue := range []string{Quorum, Classic} {
		t.Run(queue, func(t *testing.T) {
			ctx := testContext(t)
			topic := newTopic(t, "g")
			p, c := newProxy(t)
			c.Queue = queue
			d := openDriver(t, c)
			o := newObserver()
			s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g", InFlight: 200}, o)
			direct := openDriver(t, brokerConfig(t))
			const total = 5000
			published := make(chan struct{})
			go func() {
				defer close(published)
				for i := 0; i < total; i += 100 {
					publish(t, direct, topic, messages(i, i+100, 50)...)
				}
			}()
			seen := map[string]int{}
			highest := map[string]string{}
			stale, cuts := 0, 0
			dst := make([]bus.Delivery, 64)
			for n := 0; len(seen) < total; {
				k, err := receiveSome(ctx, s, dst)
				if err != nil {
					t.Fatalf("after %d of %d: %v", len(seen), total, err)
				}
				for _, m := range dst[:k] {
					// A message that comes for the first time is behind all of its key that came.
					if seen[m.ID]++; seen[m.ID] == 1 {
						if m.ID < highest[m.Key] {
							t.Errorf("key %s: %s came first after %s", m.Key, m.ID, highest[m.Key])
						}
						highest[m.Key] = m.ID
					}
				}
				if n += k; n/1000 > cuts && cuts < 4 {
					cuts++
					p.Cut()
				}
				ts := tokens(dst[:k])
				rand.Shuffle(len(ts), func(i, j int) { ts[i], ts[j] = ts[j], ts[i] })
				if err := s.Settle(ctx, ts); errors.Is(err, bus.ErrStale) {
					stale++
				} else if err != nil {
					t.Errorf("settle: %v", err)
				}
			}
			<-published
			repeats := 0
			for _, n := range seen {
				repeats += n - 1
			}
			o.mu.Lock()
			defer o.mu.Unlock()
			t.Logf("%d repeats, %d stale settles, %d lanes lost", repeats, stale, len(o.lost))
			if len(o.lost) == 0 || cuts == 0 {
				t.Error("no lane was lost: the test shows nothing")
			}
			if len(o.faults) > 0 {
				t.Error(o.faults)
			}
		})
	}
}

// Exchanges and queues that the broker lost are declared again after a reconnect, or when they are
// missed.
func TestTopologyComesBack(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	p, c := newProxy(t)
	d := openDriver(t, c)
	o := newObserver()
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, o)
	o.waitLanes(t, ctx, DefaultLanes)
	publish(t, d, topic, message("m000000", "a"))
	settle(t, s, receive(t, ctx, s, 1))

	// The lanes' queues go, and are made again.
	admin(t, d, func(tp *topology) error {
		for i := range DefaultLanes {
			if err := tp.deleteQueue(laneName(groupName(topic, "g"), i)); err != nil {
				return err
			}
		}
		return nil
	})
	admin(t, d, func(tp *topology) error {
		for i := 0; i < DefaultLanes && ctx.Err() == nil; {
			q, ok, err := tp.queue(laneName(groupName(topic, "g"), i))
			if err != nil {
				return err
			}
			if ok && q.Consumers > 0 {
				i++
			}
		}
		return ctx.Err()
	})
	// From another connection. A channel that has just published to the old queues would be misled:
	// the broker confirms its messages to the new queues, and they are gone (seen on 3.10.8).
	last := ends("")
	publish(t, openDriver(t, brokerConfig(t)), topic, last...)
	settle(t, s, receive(t, ctx, s, len(last)))

	// Everything goes while the connection is down.
	p.Refuse(true)
	deleteTopic(t, brokerConfig(t), topic, []string{"g"})
	p.Refuse(false)
	o.waitLanes(t, ctx, DefaultLanes)
	publish(t, d, topic, message("m000002", "a"))
	got := receive(t, ctx, s, 1)
	if got[0].ID != "m000002" {
		t.Errorf("got %s", got[0].ID)
	}
	settle(t, s, got)
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.lost) < DefaultLanes {
		t.Errorf("%d lanes were lost", len(o.lost))
	}
}

// Somebody deletes the topic's exchange while groups run. The next publisher makes it again with
// its groups on it: both get all published messages, in order.
func TestExchangeOfRunningGroupsIsMadeAgain(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g", "h")
	c := brokerConfig(t)
	c.Lanes = 2
	d, pub := openDriver(t, c), openDriver(t, c)
	var sources []bus.Source
	for _, group := range []string{"g", "h"} {
		sources = append(sources, subscribe(t, d, bus.Subscription{Topic: topic, Group: group}, newObserver()))
	}
	publish(t, pub, topic, messages(0, 20, 4)...)
	for _, s := range sources {
		settle(t, s, receive(t, ctx, s, 20))
	}
	admin(t, d, func(tp *topology) error {
		ch, err := tp.channel()
		if err == nil {
			err = ch.ExchangeDelete(topic, false, false)
		}
		return err
	})
	for _, m := range messages(20, 60, 4) {
		for n := 0; ; n++ {
			err := pub.Publish(ctx, topic, []*bus.Message{m})
			if err == nil {
				break
			} else if !bus.IsRetryable(err) || n > 5 {
				t.Fatal(err)
			}
		}
	}
	for _, s := range sources {
		got := receive(t, ctx, s, 40)
		checkOrder(t, got, 20, 60)
		settle(t, s, got)
	}
}

// Somebody deletes a group's exchange. The group is attached again by itself.
func TestGroupsExchangeIsMadeAgain(t *testing.T) {
	ctx := testContext(t)
	topic := newTopic(t, "g")
	c := brokerConfig(t)
	c.Lanes = 2
	d := openDriver(t, c)
	s := subscribe(t, d, bus.Subscription{Topic: topic, Group: "g"}, newObserver())
	publish(t, d, topic, messages(0, 20, 4)...)
	settle(t, s, receive(t, ctx, s, 20))
	admin(t, d, func(tp *topology) error {
		ch, err := tp.channel()
		if err == nil {
			err = ch.ExchangeDelete(groupName(topic, "g"), false, false)
		}
		return err
	})
	publish(t, d, topic, messages(20, 40, 4)...) // is kept
	got := receive(t, ctx, s, 20)
	checkOrder(t, got, 20, 40)
	settle(t, s, got)
	publish(t, d, topic, messages(40, 60, 4)...)
	got = receive(t, ctx, s, 20)
	checkOrder(t, got, 40, 60)
	settle(t, s, got)
}

// TestCutInTheHandshake: a server that hangs up when it is told a password looks like one that
// refuses it. Once a connection has worked, it is an outage: what fails meanwhile may be tried
// again.
func TestCutInTheHandshake(t *testing.T) {
	c := brokerConfig(t)
	p := faults.NewProxy(t, c.Hosts[0])
	c.Hosts = []string{p.Address()}
	d := openDriver(t, c)
	topic := newTopic(t)
	publish(t, d, topic, message("before", "k"))

	hungUp := hangUp(p)
	p.Cut()
	<-hungUp
	<-hungUp
	ctx, cancel := context.WithTimeout(testContext(t), 50*time.Millisecond)
	defer cancel()
	err := d.Publish(ctx, topic, []*bus.Message{message("meanwhile", "k")})
	if !bus.IsRetryable(err) || !strings.Contains(err.Error(), "password") {
		t.Errorf("publish in the outage: %v, retryable %v, want to try again and the cause", err, bus.IsRetryable(err))
	}
	p.Filter(func(_ int, _ faults.Direction, data []byte) []byte { return data })
	publish(t, d, topic, message("after", "k"))
}

// TestNodeHangsUp: one node that hangs up in the handshake does not keep a client from the others.
func TestNodeHangsUp(t *testing.T) {
	c := brokerConfig(t)
	p := faults.NewProxy(t, c.Hosts[0])
	c.Hosts = []string{p.Address(), c.Hosts[0]}
	hungUp := hangUp(p)
	d := openDriver(t, c)
	<-hungUp
	publish(t, d, newTopic(t), message("m", "k"))
}

// hangUp has the proxy cut connections that tell a password, and say so.
func hangUp(p *faults.Proxy) <-chan struct{} {
	startOK := []byte{0, 10, 0, 11}
	hungUp := make(chan struct{}, 100)
	p.Filter(func(_ int, d faults.Direction, data []byte) []byte {
		if d != faults.ToServer || !bytes.Contains(data, startOK) {
			return data
		}
		go func() { // a filter may not call the proxy
			p.Cut()
			hungUp <- struct{}{}
		}()
		return nil
	})
	return hungUp
}
