package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/testlog"
	"github.com/millrace-go/millrace/router"
)

// onePartition makes a topic that delivers messages in the order of their publishing.
func onePartition(tb testing.TB, b *bus.Bus, topic string) {
	tb.Helper()
	client, _ := bus.As[*kgo.Client](b)
	if _, err := kadm.NewClient(client).CreateTopic(within(tb), 1, 1, nil, topic); err != nil {
		tb.Fatal(err)
	}
}

// transactional subscribes as a router does that was asked for exactly once.
func transactional(tb testing.TB, b *bus.Bus, topic, group string) (driver.TransactionalSource, *parkingObserver) {
	tb.Helper()
	o := &parkingObserver{observer: newObserver()}
	s, err := b.Driver().Subscribe(within(tb), bus.Subscription{Topic: topic, Group: group, InFlight: 512, Bytes: 8 << 20, Transactional: true}, o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { closeSource(tb, s) })
	return s.(driver.TransactionalSource), o
}

func output(topic, text string) []driver.Output {
	return []driver.Output{{Topic: topic, Message: &bus.Message{ID: bus.NewID(), Source: "/s", Time: time.Now(), Payload: []byte(text)}}}
}

// TestExactlyOnce: whatever breaks, and whoever dies, each message's output is there once, in the
// order of its key.
func TestExactlyOnce(t *testing.T) {
	for _, broker := range []struct {
		name           string
		config         func(t *testing.T) kafka.Config
		messages, dead int
	}{
		{"fake", func(t *testing.T) kafka.Config {
			c := fakeConfig(fakeCluster(t))
			c.SessionTimeout = 300 * time.Millisecond
			return c
		}, 3000, 4},
		{"real", func(t *testing.T) kafka.Config {
			c := realConfig(t)
			c.Partitions, c.SessionTimeout = 4, 6*time.Second
			return c
		}, 20_000, 1},
	} {
		t.Run(broker.name, func(t *testing.T) { exactlyOnce(t, broker.config(t), broker.messages, broker.dead) })
	}
}

func exactlyOnce(t *testing.T, c kafka.Config, messages, dead int) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	const keys = 20
	in, out, group := name("in"), name("out"), name("g")
	patient := c
	// The short timeout is for dying members: a reader must not be taken for dead on a busy
	// machine.
	patient.SessionTimeout = 0
	well := open(t, patient)
	onePartition(t, well, out)
	for from := 0; from < messages; from += 1000 {
		ms := make([]*bus.Message, 1000)
		for i := range ms {
			ms[i] = &bus.Message{Key: strconv.Itoa((from + i) % keys), Payload: []byte(strconv.Itoa(from + i))}
		}
		publish(t, well, in, ms...)
	}
	var mu sync.Mutex
	handled := map[string]int{}
	calls := 0
	progress := make(chan struct{}, 1)
	run := func(ctx context.Context, b *bus.Bus) error {
		r := router.New(b, group, router.Guarantee(router.ExactlyOnce), router.DrainTimeout(10*time.Second), router.Logger(testlog.New(t, ""))) // connections are cut
		r.HandleFunc(in, func(ctx context.Context, m *bus.Message) error {
			mu.Lock()
			handled[string(m.Payload)]++
			calls++
			n := calls
			mu.Unlock()
			if n%(messages/16) == 0 {
				select {
				case progress <- struct{}{}:
				default:
				}
			}
			return bus.Emit(ctx, out, m)
		})
		return r.Run(ctx)
	}
	// The reader has a group of its own. In one group with it, a member waits in the join until the
	// reader's next heartbeat. The fake lets the session of a member end that waits, and then never
	// answers it; Kafka keeps such members.
	outs := subscribe(t, well, out, name("reader"), bus.Earliest, newObserver())
	last := map[string]int{}
	seen := map[string]int{}
	read := func() string { // an output
		t.Helper()
		d := receive(t, outs, 1)[0]
		text := string(d.Payload)
		n, err := strconv.Atoi(text)
		if err != nil {
			return text
		}
		if seen[text]++; seen[text] > 1 {
			t.Errorf("the output of %s is there %d times", text, seen[text])
		}
		if before, ok := last[d.Key]; ok && n <= before {
			t.Errorf("of key %s, %d came after %d", d.Key, n, before)
		}
		last[d.Key] = n
		return text
	}
	for i := range dead + 1 {
		n := &network{conns: map[net.Conn]struct{}{}}
		mortal := c
		mortal.Client = []kgo.Opt{kgo.Dialer(n.dial)}
		b, err := kafka.Open(ctx, mortal)
		if err != nil {
			t.Fatal(err)
		}
		running, stop := context.WithCancel(ctx)
		over := make(chan error, 1)
		go func() { over <- run(running, b) }()
		for range 1 + rand.IntN(3) { // some cuts in the midst of things
			select {
			case <-progress:
			case <-ctx.Done():
				t.Fatal("no progress")
			}
			n.cut(false)
		}
		if i == dead {
			// A lag of nothing would not do: parked messages are settled in the topic.
			for len(seen) < messages {
				read()
			}
			stop()
			if err := <-over; err != nil {
				t.Error(err)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
			break
		}
		n.cut(true) // dead, as far as anybody can tell
		short, end := context.WithTimeout(ctx, time.Millisecond)
		_ = b.Shutdown(short)
		end()
		stop()
		t.Log("it ended with:", <-over)
	}
	repeated := 0
	for _, n := range handled {
		if n > 1 {
			repeated++
		}
	}
	t.Logf("%d of %d messages were handled more than once", repeated, len(handled))
	publish(t, well, out, &bus.Message{Payload: []byte("end")})
	for read() != "end" {
	}
}

// TestTransactionOfWhoIsOwnerNoMore: it neither publishes nor settles.
func TestTransactionOfWhoIsOwnerNoMore(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		c.SessionTimeout = 6 * time.Second
		b := open(t, c)
		in, out, group := name("in"), name("out"), name("g")
		onePartition(t, b, out)
		publish(t, b, in, texts("a", "b", "c")...)
		s, _ := transactional(t, b, in, group)
		ds := receive(t, s, 3)
		done := []driver.Settlement{{Token: ds[0].Token, Outputs: output(out, "A")}}
		if err := s.SettleWith(within(t), done); err != nil {
			t.Fatal(err)
		}
		closeSource(t, s)
		s2, _ := transactional(t, b, in, group)
		ds2 := receive(t, s2, 2)
		if got := payloads(ds2); !slices.Equal(got, []string{"b", "c"}) {
			t.Fatalf("got %v", got)
		}
		stale := []driver.Settlement{
			{Token: ds2[0].Token, Outputs: output(out, "B")},
			{Token: ds[2].Token, Outputs: output(out, "stale")},
		}
		errs := bus.Outcomes(s2.SettleWith(within(t), stale), 2)
		if errs[0] != nil || !errors.Is(errs[1], bus.ErrStale) {
			t.Errorf("got %v", errs)
		}
		if err := s2.SettleWith(within(t), []driver.Settlement{{Token: ds2[1].Token, Outputs: output(out, "C")}}); err != nil {
			t.Error(err)
		}
		outs := subscribe(t, b, out, group, bus.Earliest, newObserver())
		if got := payloads(receive(t, outs, 3)); !slices.Equal(got, []string{"A", "B", "C"}) {
			t.Errorf("published were %v", got)
		}
	})
}

// TestOutputsRefused: an output that no broker takes is the failure of its message alone.
func TestOutputsRefused(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		in, out, group := name("in"), name("out"), name("g")
		onePartition(t, b, out)
		publish(t, b, in, texts("a", "b", "c")...)
		s, _ := transactional(t, b, in, group)
		ds := receive(t, s, 3)
		ss := []driver.Settlement{
			{Token: ds[0].Token, Outputs: output(out, "A")},
			{Token: ds[1].Token, Outputs: output(out, strings.Repeat("b", 3<<20))},
			{Token: ds[2].Token, Outputs: output(out, "C")},
		}
		errs := bus.Outcomes(s.SettleWith(within(t), ss), 3)
		if errs[0] != nil || !errors.Is(errs[1], bus.ErrTooLarge) || errs[2] != nil {
			t.Errorf("got %v", errs)
		}
		closeSource(t, s)
		s, _ = transactional(t, b, in, group)
		if got := payloads(receive(t, s, 1)); got[0] != "b" {
			t.Errorf("then came %q", got)
		}
		outs := subscribe(t, b, out, group, bus.Earliest, newObserver())
		if got := payloads(receive(t, outs, 2)); !slices.Equal(got, []string{"A", "C"}) {
			t.Errorf("published were %v", got)
		}
	})
}

// TestEndOfTransactionUnknown: if a transaction's end has no answer, the source finds out whether
// it was committed, and does not guess.
func TestEndOfTransactionUnknown(t *testing.T) {
	for _, committed := range []bool{true, false} {
		t.Run(fmt.Sprintf("committed=%v", committed), func(t *testing.T) {
			c := fakeCluster(t)
			n := &network{conns: map[net.Conn]struct{}{}}
			config := fakeConfig(c)
			config.Client = []kgo.Opt{kgo.Dialer(n.dial), kgo.RequestRetries(0)}
			well, b := open(t, fakeConfig(c)), open(t, config)
			onePartition(t, well, "out")
			publish(t, well, "in", texts("a", "b")...)
			s, _ := transactional(t, b, "in", "g")
			ds := receive(t, s, 2)
			ends := 0
			c.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
				if ends++; ends > 1 {
					return nil, nil, false
				}
				c.KeepControl()
				n.cut(false) // no answer gets through
				return nil, errors.New("cut"), !committed
			})
			for i, text := range []string{"A", "B"} {
				ss := []driver.Settlement{{Token: ds[i].Token, Outputs: output("out", text)}}
				for err := s.SettleWith(within(t), ss); err != nil; err = s.SettleWith(within(t), ss) {
					if !bus.IsRetryable(err) { // a cut request may be under way for a while
						t.Fatal(err)
					}
				}
			}
			publish(t, well, "out", &bus.Message{Payload: []byte("end")})
			outs := subscribe(t, well, "out", "g", bus.Earliest, newObserver())
			if got := payloads(receive(t, outs, 3)); !slices.Equal(got, []string{"A", "B", "end"}) {
				t.Errorf("published were %v", got)
			}
		})
	}
}

type batchFunc func(ctx context.Context, ms []*bus.Message) error

func (f batchFunc) HandleBatch(ctx context.Context, ms []*bus.Message) error { return f(ctx, ms) }
func (f batchFunc) Handle(ctx context.Context, m *bus.Message) error {
	return bus.Outcomes(f(ctx, []*bus.Message{m}), 1)[0]
}

// TestExactlyOnceInBatches: a batch handler's outputs go with the message that led to them.
// Callbacks for the call's success run after the transaction.
func TestExactlyOnceInBatches(t *testing.T) {
	b := open(t, fakeConfig(fakeCluster(t)))
	onePartition(t, b, "out")
	ms := make([]*bus.Message, 100)
	for i := range ms {
		ms[i] = &bus.Message{Payload: []byte(strconv.Itoa(i))}
	}
	publish(t, b, "in", ms...)
	var mu sync.Mutex
	failed, told := map[string]bool{}, 0
	done := make(chan struct{})
	r := router.New(b, "g", router.Guarantee(router.ExactlyOnce), router.Policy{Retry: router.Schedule{time.Millisecond}}, router.Logger(testlog.New(t, "handler failed; the message is tried again")))
	r.Handle("in", batchFunc(func(ctx context.Context, ms []*bus.Message) error {
		errs := make([]error, len(ms))
		for i, m := range ms {
			out := &bus.Message{Payload: m.Payload}
			if err := bus.Emit(ctx, "out", out, bus.WithCause(m)); err != nil {
				return err
			}
			mu.Lock()
			if n, _ := strconv.Atoi(string(m.Payload)); n%10 == 0 && !failed[m.ID] {
				failed[m.ID] = true
				errs[i] = errors.New("not the first time")
			}
			mu.Unlock()
		}
		err := bus.OnEnd(ctx, func(_ context.Context, succeeded func(*bus.Message) bool) error {
			mu.Lock()
			defer mu.Unlock()
			for _, m := range ms {
				if succeeded(m) {
					told++
				}
			}
			if told == 100 {
				close(done)
			}
			return nil
		})
		return errors.Join(err, bus.PerMessage(errs))
	}), router.Fill(20, 0))
	ctx, stop := context.WithCancel(within(t))
	over := make(chan error, 1)
	go func() { over <- r.Run(ctx) }()
	select {
	case <-done:
	case <-ctx.Done():
		t.Errorf("told of %d successes", told)
	}
	stop()
	if err := <-over; err != nil {
		t.Error(err)
	}
	publish(t, b, "out", &bus.Message{Payload: []byte("end")})
	outs := subscribe(t, b, "out", "g", bus.Earliest, newObserver())
	seen := map[string]int{}
	for text := ""; text != "end"; {
		text = string(receive(t, outs, 1)[0].Payload)
		seen[text]++
	}
	for i := range 100 {
		if n := seen[strconv.Itoa(i)]; n != 1 {
			t.Errorf("the output of %d is there %d times", i, n)
		}
	}
}

// TestParkingInTransactions: parking is one with the settlement at the origin, and the end of a
// parked message with its outputs.
func TestParkingInTransactions(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		in, out, group := name("in"), name("out"), name("g")
		onePartition(t, b, out)
		publish(t, b, in, texts("a", "b", "c")...)
		s, _ := transactional(t, b, in, group)
		ps := parkAll(receive(t, s, 3))
		source := s.(driver.ParkingSource)
		if err := source.Park(within(t), ps[:2]); err != nil {
			t.Fatal(err)
		}
		if got := fetched(t, source, []driver.Parked{{Token: ps[0].Token}, {Token: ps[1].Token}}); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("parked are %v", got)
		}
		if err := s.SettleWith(within(t), []driver.Settlement{{Token: ps[0].Token, Outputs: output(out, "A")}}); err != nil {
			t.Fatal(err)
		}
		closeSource(t, s)
		s, o := transactional(t, b, in, group)
		if got := payloads(receive(t, s, 1)); got[0] != "c" {
			t.Errorf("got %v", got)
		}
		if got := fetched(t, s.(driver.ParkingSource), o.told(t, 1)); !slices.Equal(got, []string{"b"}) {
			t.Errorf("parked are %v", got)
		}
		outs := subscribe(t, b, out, group, bus.Earliest, newObserver())
		if got := payloads(receive(t, outs, 1)); got[0] != "A" {
			t.Errorf("published were %v", got)
		}
	})
}

// TestCancelledExactlyOnce: a delayed message is withdrawn while others are settled in
// transactions, and gone for the next member, too.
func TestCancelledExactlyOnce(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		in, out, group := name("in"), name("out"), name("g")
		onePartition(t, b, out)
		var mu sync.Mutex
		var came []string
		start := func() (stop func()) {
			r := router.New(b, group, router.Guarantee(router.ExactlyOnce), router.Logger(testlog.New(t)))
			r.HandleFunc(in, func(ctx context.Context, m *bus.Message) error {
				mu.Lock()
				defer mu.Unlock()
				came = append(came, m.ID)
				return bus.Emit(ctx, out, &bus.Message{Payload: []byte(m.ID)})
			})
			ctx, cancel := context.WithCancel(within(t))
			over := make(chan error, 1)
			go func() { over <- r.Run(ctx) }()
			return func() {
				cancel()
				if err := <-over; err != nil {
					t.Error(err)
				}
			}
		}
		delayed := func(id string, d time.Duration) {
			if err := b.Publish(within(t), in, "x", bus.WithID(id), bus.WithKey("k"), bus.WithDelay(d)); err != nil {
				t.Fatal(err)
			}
		}
		outs := subscribe(t, b, out, group, bus.Earliest, newObserver())
		delayed("gone", 4*time.Second)
		delayed("stays", 5*time.Second)
		publish(t, b, in, &bus.Message{ID: "now", Key: "k"})
		if err := b.Publish(within(t), in, bus.Cancellation{Key: "k", ID: "gone"}); err != nil {
			t.Fatal(err)
		}
		publish(t, b, in, &bus.Message{ID: "behind", Key: "k"})
		stop := start()
		if got := payloads(receive(t, outs, 2)); !slices.Equal(got, []string{"now", "behind"}) {
			t.Errorf("published were %v", got)
		}
		stop()
		stop = start()
		if got := payloads(receive(t, outs, 1)); !slices.Equal(got, []string{"stays"}) {
			t.Errorf("then %v", got)
		}
		stop()
		if !slices.Equal(came, []string{"now", "behind", "stays"}) {
			t.Errorf("handled were %v", came)
		}
	})
}
