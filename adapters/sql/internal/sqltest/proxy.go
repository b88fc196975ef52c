package sqltest

import (
	"bytes"
	"sync"
	"testing"

	"github.com/millrace-go/millrace/internal/faults"
)

// Proxy is a proxy in front of a database that knows a commit, and counts round trips.
type Proxy struct {
	*faults.Proxy

	mu    sync.Mutex
	spoke map[int]bool // connections on which the client has spoken, and not yet the server
	trips int
}

// NewProxy starts a proxy in front of target, a host and port. It ends with the test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	p := &Proxy{Proxy: faults.NewProxy(t, target), spoke: map[int]bool{}}
	p.Filter(p.count)
	return p
}

// Hang holds up all that is sent, in both directions, without closing anything, until it is called
// with false.
func (p *Proxy) Hang(on bool) {
	p.Stall(faults.ToServer, on)
	p.Stall(faults.ToClient, on)
}

// CutAtCommit cuts the next connection on which a client commits, when the server has answered: the
// answer is lost.
func (p *Proxy) CutAtCommit() {
	p.CutAnswer(func(said []byte) bool {
		said = bytes.ToUpper(said)
		for _, other := range []string{"COMMITTED", "AUTOCOMMIT"} { // settings
			said = bytes.ReplaceAll(said, []byte(other), nil)
		}
		return bytes.Contains(said, []byte("COMMIT"))
	})
}

// Trips returns how many round trips there were: how often a client has spoken after the server
// had.
func (p *Proxy) Trips() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.trips
}

func (p *Proxy) count(conn int, d faults.Direction, data []byte) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if d == faults.ToServer && !p.spoke[conn] {
		p.trips++
	}
	p.spoke[conn] = d == faults.ToServer
	return data
}
