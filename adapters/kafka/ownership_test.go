package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/adapters/kafka"
	"github.com/millrace-go/millrace/bus"
)

// eachBroker runs a test on a cluster inside the test, and on the real broker.
func eachBroker(t *testing.T, f func(t *testing.T, c kafka.Config)) {
	t.Run("fake", func(t *testing.T) { f(t, fakeConfig(fakeCluster(t))) })
	t.Run("real", func(t *testing.T) {
		c := realConfig(t)
		c.Partitions = 4
		f(t, c)
	})
}

// ledger counts deliveries and settlements by message.
type ledger struct {
	mu        sync.Mutex
	delivered map[string]int
	settled   map[string]int
	change    chan struct{}
}

func newLedger() *ledger {
	return &ledger{delivered: map[string]int{}, settled: map[string]int{}, change: make(chan struct{})}
}

func (l *ledger) until(tb testing.TB, n int) {
	tb.Helper()
	ctx := within(tb)
	for {
		l.mu.Lock()
		have, change := len(l.settled), l.change
		l.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-change:
		case <-ctx.Done():
			tb.Fatalf("%d of %d messages settled", have, n)
		}
	}
}

// member is a consumer that settles all it receives, and that hands over cleanly.
type member struct {
	*observer
	source bus.Source
	ledger *ledger
	busy   sync.RWMutex // held while a batch is being handled
	over   chan struct{}
	cancel context.CancelFunc
}

func join(tb testing.TB, b *bus.Bus, topic, group string, l *ledger) *member {
	tb.Helper()
	m := &member{observer: newObserver(), ledger: l, over: make(chan struct{})}
	m.revoking = func(context.Context, []bus.Lane) {
		m.busy.Lock()
		defer m.busy.Unlock() // the handled messages have been settled
	}
	m.source = subscribe(tb, b, topic, group, bus.Earliest, m)
	ctx, cancel := context.WithCancel(tb.Context())
	m.cancel = cancel
	go m.run(tb, ctx)
	return m
}

func (m *member) run(tb testing.TB, ctx context.Context) {
	defer close(m.over)
	buf := make([]bus.Delivery, 50)
	for {
		n, err := m.source.Receive(ctx, buf, 1<<20)
		if err != nil {
			if ctx.Err() == nil {
				tb.Errorf("receive: %v", err)
			}
			return
		}
		m.busy.RLock()
		var tokens []bus.Token
		var ids []string
		for _, d := range buf[:n] {
			m.mu.Lock()
			ours := m.owned[d.Lane] == d.Epoch
			m.mu.Unlock()
			if ours { // messages of a lane being handed over are not ours to handle
				tokens, ids = append(tokens, d.Token), append(ids, string(d.Payload))
			}
		}
		m.ledger.mu.Lock()
		for _, id := range ids {
			m.ledger.delivered[id]++
		}
		m.ledger.mu.Unlock()
		if err := m.source.Settle(ctx, tokens); err != nil && ctx.Err() == nil {
			tb.Errorf("settle: %v", err)
		}
		m.busy.RUnlock()
		m.ledger.mu.Lock()
		for _, id := range ids {
			m.ledger.settled[id]++
		}
		close(m.ledger.change)
		m.ledger.change = make(chan struct{})
		m.ledger.mu.Unlock()
	}
}

func (m *member) leave(tb testing.TB) {
	tb.Helper()
	m.cancel()
	<-m.over
	closeSource(tb, m.source)
}

// TestMembersComeAndGo loses nothing, and hands each lane over so cleanly that nothing is handled
// twice.
func TestMembersComeAndGo(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		l := newLedger()
		n := 0
		more := func(count int) {
			ms := make([]*bus.Message, count)
			for i := range ms {
				ms[i] = &bus.Message{Key: fmt.Sprint("key-", n%50), Payload: []byte(strconv.Itoa(n))}
				n++
			}
			publish(t, b, topic, ms...)
		}
		more(500)
		one := join(t, b, topic, group, l)
		one.until(t, "the first has all", owns(4))
		more(500)
		two := join(t, b, topic, group, l)
		more(500)
		two.until(t, "the second has half", owns(2))
		more(500)
		three := join(t, b, topic, group, l)
		more(500)
		three.until(t, "the third has one", func(o *observer) bool { return len(o.owned) >= 1 })
		more(500)
		one.leave(t)
		more(500)
		three.leave(t)
		two.until(t, "the second has all", owns(4))
		more(500)
		l.until(t, n)
		two.leave(t)
		for id, count := range l.delivered {
			if count != 1 || l.settled[id] != 1 {
				t.Errorf("message %s was handled %d times", id, count)
			}
		}
		if len(l.delivered) != n {
			t.Errorf("%d messages handled, want %d", len(l.delivered), n)
		}
		// The settlements are committed: a new member receives nothing.
		four := subscribe(t, b, topic, group, bus.Earliest, newObserver())
		if k, err := four.Receive(shortly(t), make([]bus.Delivery, 1), 1000); k != 0 {
			t.Errorf("received %d: %v", k, err)
		}
	})
}

// TestOtherLanesGoOn: while a lane is being drained for its handover, the others are served.
func TestOtherLanesGoOn(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, byPartition(4)...)
		one, two := newObserver(), newObserver()
		draining, release := make(chan []bus.Lane, 4), make(chan struct{})
		one.revoking = func(_ context.Context, lanes []bus.Lane) {
			draining <- lanes
			<-release
		}
		s := subscribe(t, b, topic, group, bus.Earliest, one)
		got := receive(t, s, 4)
		subscribe(t, b, topic, group, bus.Earliest, two)
		leaving := <-draining
		publish(t, b, topic, byPartition(8)...)
		gone := func(d bus.Delivery) bool {
			return slices.ContainsFunc(leaving, func(l bus.Lane) bool { return l.ID == d.Lane })
		}
		for _, d := range receive(t, s, 2*(4-len(leaving))) {
			if gone(d) {
				t.Errorf("delivered %d of lane %d, which is being handed over", d.Position, d.Lane)
			}
		}
		// The new owner begins behind the messages settled meanwhile.
		for _, d := range got {
			settle(t, s, d)
		}
		close(release)
		two.until(t, "the lanes came over", owns(len(leaving)))
		for _, d := range got {
			err := s.Settle(within(t), []bus.Token{d.Token})
			if gone(d) != errors.Is(err, bus.ErrStale) {
				t.Errorf("lane %d: %v", d.Lane, err)
			}
		}
	})
}

// TestHandoverTakesAtMostASecond after a clean Close, measured from one member's Close to the
// other's first message.
func TestHandoverIsQuick(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, byPartition(4)...)
		one, two := newObserver(), newObserver()
		s1 := subscribe(t, b, topic, group, bus.Earliest, one)
		one.until(t, "the first has all", owns(4))
		s2 := subscribe(t, b, topic, group, bus.Earliest, two)
		two.until(t, "the second has half", owns(2))
		receive(t, s2, 2)
		begin := time.Now()
		closeSource(t, s1)
		receive(t, s2, 2)
		t.Log("handed over after", time.Since(begin))
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("handed over after %v, want about 1s", d)
		}
	})
}

// network lies between a bus and its brokers.
type network struct {
	mu    sync.Mutex
	down  bool
	conns map[net.Conn]struct{}
}

func (n *network) dial(ctx context.Context, proto, addr string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, errors.New("the network is down")
	}
	c, err := (&net.Dialer{}).DialContext(ctx, proto, addr)
	if err == nil {
		n.conns[c] = struct{}{}
	}
	return c, err
}

// cut breaks all connections, and keeps new ones from being made until down is false.
func (n *network) cut(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
	for c := range n.conns {
		_ = c.Close()
	}
	clear(n.conns)
}

// TestConnectionsBreak: nothing shows but a delay, as long as it is shorter than the session.
func TestConnectionsBreak(t *testing.T) {
	eachBroker(t, func(t *testing.T, c kafka.Config) {
		n := &network{conns: map[net.Conn]struct{}{}}
		c.Client = []kgo.Opt{kgo.Dialer(n.dial)}
		b := open(t, c)
		topic, group := name("t"), name("g")
		publish(t, b, topic, texts("0")...)
		l := newLedger()
		m := join(t, b, topic, group, l)
		l.until(t, 1)
		for i := 1; i <= 5; i++ {
			n.cut(false)
			publish(t, b, topic, texts(strconv.Itoa(i))...)
		}
		n.cut(true)
		failed := make(chan error, 1)
		go func() { failed <- b.PublishMessages(within(t), topic, texts("6")...) }()
		n.cut(false)
		if err := <-failed; err != nil {
			t.Error(err)
		}
		l.until(t, 7)
		m.leave(t)
		if len(m.lost) > 0 {
			t.Errorf("lanes were lost: %v", m.lost)
		}
		for id, count := range l.delivered {
			if count != 1 {
				t.Errorf("message %s was handled %d times", id, count)
			}
		}
	})
}

// TestStaticMember: a member that comes back in time gets its lanes without a rebalance; another
// has to wait.
func TestStaticMember(t *testing.T) {
	cluster := fakeCluster(t)
	c := fakeConfig(cluster)
	c.Instance = "pod-1"
	topic, group := name("t"), name("g")
	b := open(t, c)
	publish(t, b, topic, byPartition(4)...)
	o := newObserver()
	s := subscribe(t, b, topic, group, bus.Earliest, o)
	settle(t, s, receive(t, s, 4)...)
	before, err := cluster.WaitGroupStable(within(t), group, 1)
	if err != nil {
		t.Fatal(err)
	}
	closeSource(t, s)
	again := newObserver()
	s = subscribe(t, b, topic, group, bus.Earliest, again)
	again.until(t, "its lanes are back", owns(4))
	if after := cluster.GroupInfo(group); after.Epoch != before.Epoch || *after.Members[0].InstanceID != "pod-1."+topic {
		t.Errorf("generation %d became %d, instance %s", before.Epoch, after.Epoch, *after.Members[0].InstanceID)
	}
	publish(t, b, topic, texts("5")...)
	if got := payloads(receive(t, s, 1)); got[0] != "5" {
		t.Errorf("got %q", got)
	}
}
