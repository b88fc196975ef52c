// Package faults names the faults between a driver and its broker, for the tests of all drivers.
package faults

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// Direction is one of the two directions of a connection.
type Direction int

const (
	// ToServer is the direction of clients' data.
	ToServer Direction = iota
	// ToClient is the direction of the server's data.
	ToClient
)

// Proxy passes TCP connections on to a server, until a test asks for a fault. It is safe for
// concurrent use.
type Proxy struct {
	listener net.Listener
	target   string
	work     sync.WaitGroup

	mu      sync.Mutex
	changed *sync.Cond
	conns   map[*conn]struct{}
	closed  bool
	refuse  bool
	stalled [2]bool
	left    [2]int64 // bytes until the cut of CutAfter; none if negative
	latency time.Duration
	request func([]byte) bool // of CutAnswer; nil if none
	filter  func(conn int, d Direction, data []byte) []byte
	last    int // the number of the newest connection
}

// conn is a client's connection and its connection to the server.
type conn struct {
	client, server net.Conn
	number         int
	deaf           bool // the answer to a request of CutAnswer is not passed on
}

func (c *conn) close() {
	c.client.Close()
	c.server.Close()
}

// NewProxy starts a proxy in front of target, a host and port. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, conns: map[*conn]struct{}{}, left: [2]int64{-1, -1}}
	p.changed = sync.NewCond(&p.mu)
	p.work.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Address returns the proxy's host and port.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Cut closes all connections. New ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut()
}

func (p *Proxy) cut() {
	for c := range p.conns {
		c.close()
	}
}

// Refuse cuts, and closes new connections at once, until Refuse(false).
func (p *Proxy) Refuse(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuse = on; on {
		p.cut()
	}
}

// Stall holds up all data in a direction, without closing a connection, until it is called with
// false.
func (p *Proxy) Stall(d Direction, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled[d] = on
	p.changed.Broadcast()
}

// CutAfter cuts all connections when n more bytes have passed in a direction: in the middle of a
// frame, or of a packet.
func (p *Proxy) CutAfter(d Direction, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left[d] = int64(n)
}

// CutAnswer passes the next request for which is returns true to the server, but no answer back: it
// cuts the connection instead. The client cannot know whether the server carried the request out.
// is must not call the proxy.
func (p *Proxy) CutAnswer(is func(request []byte) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.request = is
}

// Delay holds up each packet, in both directions, for d.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.latency = d
}

// Filter calls f with all data before it passes; the result of f passes in its place. f is called
// for one connection after the other, may keep data back for its next call, and must not call the
// proxy. conn numbers the connections.
func (p *Proxy) Filter(f func(conn int, d Direction, data []byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filter = f
}

// Send sends data on all connections, as if the other side had sent it. No other data may be on its
// way in this direction.
func (p *Proxy) Send(d Direction, data []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		to := c.server
		if d == ToClient {
			to = c.client
		}
		_, _ = to.Write(data) // an error says that the connection has ended
	}
}

// Heal ends all lasting faults.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.stalled, p.left, p.latency, p.request = false, [2]bool{}, [2]int64{-1, -1}, 0, nil
	p.changed.Broadcast()
}

func (p *Proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.changed.Broadcast()
	p.cut()
	p.mu.Unlock()
	p.work.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
		if err != nil {
			client.Close()
			continue
		}
		c := &conn{client: client, server: server}
		p.mu.Lock()
		if p.closed || p.refuse {
			c.close()
			p.mu.Unlock()
			continue
		}
		p.last++
		c.number = p.last
		p.conns[c] = struct{}{}
		p.mu.Unlock()
		p.work.Go(func() { p.pass(c, ToServer) })
		p.work.Go(func() { p.pass(c, ToClient) })
	}
}

// pass forwards one direction of a connection until it ends.
func (p *Proxy) pass(c *conn, d Direction) {
	from, to := c.client, c.server
	if d == ToClient {
		from, to = to, from
	}
	defer func() {
		c.close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, c)
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		data, last := p.judge(c, d, buf[:n])
		if _, err := to.Write(data); err != nil || last {
			return
		}
	}
}

// judge waits while a fault holds data up. It returns the data to forward, and whether the
// connection ends then.
func (p *Proxy) judge(c *conn, d Direction, data []byte) (forward []byte, last bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.latency > 0 {
		delay := p.latency
		p.mu.Unlock()
		time.Sleep(delay) // the fault itself
		p.mu.Lock()
	}
	for p.stalled[d] && !p.closed {
		p.changed.Wait()
	}
	if d == ToServer && p.request != nil && p.request(data) {
		p.request, c.deaf = nil, true
	}
	if d == ToClient && c.deaf {
		return nil, true
	}
	if p.filter != nil {
		data = p.filter(c.number, d, data)
	}
	if left := p.left[d]; left >= 0 {
		if int64(len(data)) < left {
			p.left[d] -= int64(len(data))
			return data, false
		}
		p.left[d] = -1
		for other := range p.conns {
			if other != c {
				other.close()
			}
		}
		return data[:left], true
	}
	return data, false
}
