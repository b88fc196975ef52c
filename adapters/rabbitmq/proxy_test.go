package rabbitmq

import (
	"bytes"
	"context"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/millrace-go/millrace/adapters/rabbitmq/internal/amqplink"
	"github.com/millrace-go/millrace/internal/faults"
)

// proxy is a proxy in front of the broker that reads the frames that pass.
type proxy struct {
	*faults.Proxy

	mu      sync.Mutex
	streams map[half][]byte // unfinished frames
	sent    map[method]int  // to the broker
	told    map[method]int  // by the broker
	unseen  string          // of this queue, the broker's next answers say
	answers int             // that it is empty, so many of them
	muted   string          // messages published to this exchange, or to this queue, are not confirmed
	quiet   map[channel]bool
	silent  int            // confirms that mute has swallowed
	given   map[string]int // deliveries of the broker, by queue
	held    held
	passed  *sync.Cond // something has passed
}

// held is what hold keeps back.
type held struct {
	conn int
	on   bool
	data []byte
}

// half is one direction of a connection.
type half struct {
	conn int
	d    faults.Direction
}

// channel is a channel of a connection.
type channel struct {
	conn   int
	number uint16
}

// frameHead is the size of a frame's head: type, channel, size of the payload. Behind the payload
// is one byte more.
const frameHead = 1 + 2 + 4

// method is the class and number of an AMQP method.
type method [2]uint16

var (
	queueDeclareOK = method{50, 11}
	basicConsume   = method{60, 20}
	basicCancel    = method{60, 30}
	basicPublish   = method{60, 40}
	basicDeliver   = method{60, 60}
	basicAck       = method{60, 80}
	basicNack      = method{60, 120}
)

// The connections of a driver that is its proxy's first.
const (
	publishes = 1
	consumes  = 2
)

// newProxy returns the configuration that goes through it.
func newProxy(t testing.TB) (*proxy, Config) {
	t.Helper()
	c, err := brokerConfig(t).complete()
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{
		Proxy: faults.NewProxy(t, c.Hosts[0]), streams: map[half][]byte{}, sent: map[method]int{}, told: map[method]int{},
		given: map[string]int{},
	}
	p.passed = sync.NewCond(&p.mu)
	p.Filter(p.filter)
	c.Hosts = []string{p.Address()}
	return p, c
}

// filter passes whole frames on.
func (p *proxy) filter(conn int, d faults.Direction, data []byte) (out []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stream := append(p.streams[half{conn, d}], data...)
	for len(stream) >= 8 {
		n := 8
		if stream[0] != 'A' { // else it is the greeting
			n = frameHead + int(binary.BigEndian.Uint32(stream[3:])) + 1
		}
		if len(stream) < n {
			break
		}
		if p.passes(conn, d, stream[:n]) {
			out = append(out, stream[:n]...)
		}
		stream = stream[n:]
	}
	p.streams[half{conn, d}] = bytes.Clone(stream)
	p.passed.Broadcast()
	return p.keep(conn, d, out)
}

// keep keeps data back while it is held, and passes it on with the next data after that.
func (p *proxy) keep(conn int, d faults.Direction, data []byte) []byte {
	switch {
	case d != faults.ToClient || conn != p.held.conn:
		return data
	case p.held.on:
		p.held.data = append(p.held.data, data...)
		return nil
	}
	data, p.held.data = append(p.held.data, data...), nil
	return data
}

// passes says whether a frame is passed on, and may change it.
func (p *proxy) passes(conn int, d faults.Direction, frame []byte) bool {
	if frame[0] != 1 {
		return true
	}
	args := frame[frameHead+4:]
	m := method{binary.BigEndian.Uint16(frame[frameHead:]), binary.BigEndian.Uint16(frame[frameHead+2:])}
	ch := channel{conn, binary.BigEndian.Uint16(frame[1:])}
	if d == faults.ToServer {
		p.sent[m]++
		if m == basicPublish && p.muted != "" && bytes.Contains(args, shortString(p.muted)) {
			p.quiet[ch] = true
		}
		return true
	}
	p.told[m]++
	if name := shortString(p.unseen); m == queueDeclareOK && p.answers > 0 && bytes.HasPrefix(args, name) {
		clear(args[len(name) : len(name)+8])
		p.answers--
	}
	if m == basicDeliver { // the driver's consumers have the names of their queues
		p.given[string(args[1:1+args[0]])]++
	}
	if m == basicAck && p.quiet[ch] {
		p.silent++
		return false
	}
	return true
}

// wait waits until cond is true; it is called with mu held.
func (p *proxy) wait(t testing.TB, ctx context.Context, what string, cond func() bool) {
	t.Helper()
	defer context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.passed.Broadcast()
	})()
	p.mu.Lock()
	defer p.mu.Unlock()
	for !cond() {
		if ctx.Err() != nil {
			t.Fatalf("waiting for %s: %v", what, ctx.Err())
		}
		p.passed.Wait()
	}
}

// hold keeps back the frames that the broker sends on a connection.
func (p *proxy) hold(conn int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = held{conn: conn, on: true}
}

// release ends hold. The frames that were kept back go with the answer to a question of the driver.
func (p *proxy) release(t testing.TB, d *busDriver) {
	t.Helper()
	p.mu.Lock()
	p.held.on = false
	p.mu.Unlock()
	if err := d.Ping(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// deliveries returns how many deliveries from a queue the broker has sent.
func (p *proxy) deliveries(queue string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.given[queue]
}

func shortString(s string) []byte { return append([]byte{byte(len(s))}, s...) }

// count returns how many methods were sent to the broker since it was last called.
func (p *proxy) count() map[method]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	sent := p.sent
	p.sent = map[method]int{}
	return sent
}

// cancelled returns how many consumers the broker has cancelled.
func (p *proxy) cancelled() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.told[basicCancel]
}

// block has the broker say that it blocks publishers, and waits until the session knows. The
// connections must be idle.
func (p *proxy) block(t testing.TB, s *amqplink.Session, reason string) {
	t.Helper()
	p.inject(60, shortString(reason)...)
	for s.BlockedBy() == "" {
		select {
		case <-s.Done:
			t.Fatal("the connection ended")
		default:
		}
	}
}

// unblock ends the blocking that block began.
func (p *proxy) unblock(s *amqplink.Session) {
	p.inject(61)
	for s.BlockedBy() != "" {
		select {
		case <-s.Done:
			return
		default:
		}
	}
}

// inject sends a method of the class connection to the clients.
func (p *proxy) inject(method byte, args ...byte) {
	frame := []byte{1, 0, 0, 0, 0, 0, byte(4 + len(args)), 0, 10, 0, method}
	p.Send(faults.ToClient, append(append(frame, args...), 0xce))
}

// blind has the broker say in its next n answers about a queue that it has no messages and
// consumers. The broker says so for a quorum queue with a slow leader.
func (p *proxy) blind(queue string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unseen, p.answers = queue, n
}

// mute has the broker confirm nothing more on the channels that publish to this exchange or queue.
// Call it before anything is published there.
func (p *proxy) mute(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted, p.quiet = name, map[channel]bool{}
}
