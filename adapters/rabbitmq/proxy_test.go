package rabbitmq

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// proxy is a TCP proxy in front of the broker that breaks connections.
type proxy struct {
	target   string
	listener net.Listener

	mu      sync.Mutex
	conns   map[net.Conn]bool // true: the client's side
	refuse  bool
	stalled bool           // nothing is forwarded to the broker
	pace    time.Duration  // how long 4 KiB from the broker take
	sent    map[method]int // to the broker
	told    map[method]int // by the broker
	flow    *sync.Cond
	unseen  string // of this queue, the broker's next answers say
	answers int    // that it is empty, so many of them
	muted   string // what is published to this exchange, or to this queue, is not confirmed
	quiet   map[client]bool
	workers sync.WaitGroup
}

// newProxy returns the configuration that goes through it.
func newProxy(t testing.TB) (*proxy, Config) {
	t.Helper()
	c, err := brokerConfig(t).complete()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{target: c.Hosts[0], listener: l, conns: map[net.Conn]bool{}, sent: map[method]int{}, told: map[method]int{}}
	p.flow = sync.NewCond(&p.mu)
	p.workers.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.stall(false)
		p.cut()
		p.workers.Wait()
	})
	c.Hosts = []string{l.Addr().String()}
	return p, c
}

// method is the class and number of an AMQP method.
type method [2]uint16

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
	return p.told[method{60, 30}]
}

// note counts the methods in what one side sent, and returns the rest of it, an unfinished frame.
func note(methods map[method]int, stream []byte) []byte {
	const header, end = 7, 1
	for len(stream) >= header {
		if stream[0] == 'A' { // AMQP 0 0 9 1, the greeting
			stream = stream[header+end:]
			continue
		}
		size := header + int(binary.BigEndian.Uint32(stream[3:])) + end
		if len(stream) < size {
			break
		}
		if stream[0] == 1 {
			methods[method{binary.BigEndian.Uint16(stream[header:]), binary.BigEndian.Uint16(stream[header+2:])}]++
		}
		stream = stream[size:]
	}
	return stream
}

func (p *proxy) accept() {
	for {
		in, err := p.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", p.target)
		p.mu.Lock()
		if err != nil || p.refuse {
			in.Close()
			if err == nil {
				out.Close()
			}
			p.mu.Unlock()
			continue
		}
		p.conns[in], p.conns[out] = true, false
		p.mu.Unlock()
		p.workers.Go(func() { p.forward(out, in, in, true) })
		p.workers.Go(func() { p.forward(in, out, in, false) })
	}
}

func (p *proxy) forward(dst, src, in net.Conn, toBroker bool) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 4096)
	var stream, held []byte
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		p.mu.Lock()
		if toBroker {
			p.listen(in, append(stream, buf[:n]...))
			stream = note(p.sent, append(stream, buf[:n]...))
		} else {
			stream = note(p.told, append(stream, buf[:n]...))
			p.hide(buf[:n])
		}
		for p.stalled && toBroker {
			p.flow.Wait()
		}
		out := buf[:n]
		if !toBroker && p.muted != "" {
			held, out = p.silence(in, append(held, out...))
		}
		pace := p.pace
		p.mu.Unlock()
		if pace > 0 && !toBroker {
			<-time.After(pace)
		}
		if _, err := dst.Write(out); err != nil && err != io.EOF {
			return
		}
	}
}

// cut breaks all connections.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.Close()
	}
	clear(p.conns)
}

// down cuts, and refuses new connections until it is called with false.
func (p *proxy) down(refuse bool) {
	p.mu.Lock()
	p.refuse = refuse
	p.mu.Unlock()
	if refuse {
		p.cut()
	}
}

// stall stops forwarding to the broker until it is called with false.
func (p *proxy) stall(on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stalled = on
	p.flow.Broadcast()
}

// unblock ends a blocking that inject began.
func (p *proxy) unblock(s *session) {
	p.inject(10, 61)
	s.mu.Lock()
	flowing := s.flowing
	s.mu.Unlock()
	if flowing != nil {
		<-flowing
	}
}

// inject sends a method frame of channel 0 to the clients as if it came from the broker. The connections must be idle.
func (p *proxy) inject(class, method byte, args ...byte) {
	frame := []byte{1, 0, 0, 0, 0, 0, byte(4 + len(args)), 0, class, 0, method}
	frame = append(append(frame, args...), 0xce)
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, client := range p.conns {
		if client {
			_, _ = c.Write(frame)
		}
	}
}

// blind has the broker say of its next n answers about a queue that there are no messages and consumers, as it does for a quorum queue
// whose leader is slow.
func (p *proxy) blind(queue string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unseen, p.answers = queue, n
}

func (p *proxy) hide(frames []byte) {
	if p.answers == 0 {
		return
	}
	declared := append([]byte{0, 50, 0, 11, byte(len(p.unseen))}, p.unseen...) // queue.declare-ok
	for {
		i := bytes.Index(frames, declared)
		if i < 0 || p.answers == 0 {
			return
		}
		frames = frames[i+len(declared):]
		clear(frames[:8])
		p.answers--
	}
}

// client is a channel of a client's connection.
type client struct {
	conn    net.Conn
	channel uint16
}

// mute has the broker confirm nothing more on the channels on which something is published to this exchange or queue. It is called
// before anything is.
func (p *proxy) mute(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.muted, p.quiet = name, map[client]bool{}
}

// eachFrame yields the whole frames of a stream, and returns the rest.
func eachFrame(stream []byte, f func(frame []byte)) []byte {
	for len(stream) >= frameHead && stream[0] != 'A' {
		n := frameLength(stream)
		if len(stream) < n {
			break
		}
		f(stream[:n])
		stream = stream[n:]
	}
	return stream
}

func isMethod(frame []byte, class, number byte) bool {
	return frame[0] == 1 && bytes.HasPrefix(frame[frameHead:], []byte{0, class, 0, number})
}

// listen notes the channels that publish to what is muted.
func (p *proxy) listen(in net.Conn, stream []byte) {
	if p.muted == "" {
		return
	}
	eachFrame(stream, func(frame []byte) {
		if isMethod(frame, 60, 40) && bytes.Contains(frame, append([]byte{byte(len(p.muted))}, p.muted...)) {
			p.quiet[client{in, binary.BigEndian.Uint16(frame[1:])}] = true
		}
	})
}

// silence leaves out the confirms of muted channels. It returns the beginning of a frame, and what is to be forwarded.
func (p *proxy) silence(in net.Conn, stream []byte) (rest, out []byte) {
	rest = eachFrame(stream, func(frame []byte) {
		if !isMethod(frame, 60, 80) || !p.quiet[client{in, binary.BigEndian.Uint16(frame[1:])}] {
			out = append(out, frame...)
		}
	})
	return bytes.Clone(rest), out
}
