package sqltest

import (
	"bytes"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Proxy passes TCP connections on to a server, until a test cuts them or lets them hang.
type Proxy struct {
	listener net.Listener
	target   string

	mu     sync.Mutex
	moving *sync.Cond // hangs has changed
	hangs  bool
	trap   bool // set by CutAtCommit
	conns  map[net.Conn]struct{}
	closed bool
	work   sync.WaitGroup

	trips atomic.Int64
}

// NewProxy starts a proxy in front of target, a host and port. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]struct{}{}}
	p.moving = sync.NewCond(&p.mu)
	p.work.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

// Address is where the proxy listens.
func (p *Proxy) Address() string { return p.listener.Addr().String() }

// Cut closes all connections. New ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
}

// Hang holds up whatever is sent, in both directions, without closing anything, until it is called with false.
func (p *Proxy) Hang(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hangs = on
	p.moving.Broadcast()
}

// CutAtCommit cuts the next connection on which a client commits, when the server has answered: the answer is lost.
func (p *Proxy) CutAtCommit() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trap = true
}

// trapped says whether a client commits on a connection that is to be cut then.
func (p *Proxy) trapped(said []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	said = bytes.ToUpper(said)
	for _, other := range []string{"COMMITTED", "AUTOCOMMIT"} { // settings
		said = bytes.ReplaceAll(said, []byte(other), nil)
	}
	if !p.trap || !bytes.Contains(said, []byte("COMMIT")) {
		return false
	}
	p.trap = false
	return true
}

// Trips returns how many round trips there were: how often a client has spoken after the server had.
func (p *Proxy) Trips() int { return int(p.trips.Load()) }

func (p *Proxy) close() {
	p.listener.Close()
	p.mu.Lock()
	p.closed = true
	p.moving.Broadcast()
	p.mu.Unlock()
	p.Cut()
	p.work.Wait()
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			continue
		}
		server, err := net.DialTimeout("tcp", p.target, 5*time.Second)
		if err != nil {
			client.Close()
			continue
		}
		p.mu.Lock()
		p.conns[client], p.conns[server] = struct{}{}, struct{}{}
		if p.closed {
			client.Close()
			server.Close()
		}
		p.mu.Unlock()
		var answered, ends atomic.Bool // answered by the server, since the client spoke
		answered.Store(true)
		p.work.Go(func() {
			p.pass(client, server, func(said []byte) bool {
				if answered.Swap(false) {
					p.trips.Add(1)
				}
				if p.trapped(said) {
					ends.Store(true)
				}
				return true
			})
		})
		p.work.Go(func() {
			p.pass(server, client, func([]byte) bool {
				answered.Store(true)
				return !ends.Load()
			})
		})
	}
}

func (p *Proxy) pass(from, to net.Conn, seen func([]byte) bool) {
	defer func() {
		from.Close()
		to.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.conns, from)
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		for p.hangs && !p.closed {
			p.moving.Wait()
		}
		p.mu.Unlock()
		if !seen(buf[:n]) {
			return
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}
