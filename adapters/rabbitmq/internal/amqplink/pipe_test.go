package amqplink

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// slowConn is a connection with a Write that waits for permission to go on.
type slowConn struct {
	net.Conn // nil
	writes   chan []byte
}

func (c *slowConn) Write(b []byte) (int, error) {
	c.writes <- bytes.Clone(b)
	return len(b), nil
}

func (c *slowConn) Read([]byte) (int, error)         { return 0, io.EOF }
func (c *slowConn) SetWriteDeadline(time.Time) error { return nil }
func (c *slowConn) Close() error                     { return nil }

// Bytes written while the system is busy with the write before go with one system call.
func TestWritesShareSystemCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &slowConn{writes: make(chan []byte)}
		p := newPipe(c)
		write := func(s string) {
			if n, err := p.Write([]byte(s)); n != len(s) || err != nil {
				t.Errorf("%d, %v", n, err)
			}
		}
		write("0 ")
		synctest.Wait()
		var want strings.Builder
		for i := range 1000 {
			s := strconv.Itoa(i) + " "
			want.WriteString(s)
			write(s)
		}
		if got := string(<-c.writes); got != "0 " {
			t.Errorf("%q first", got)
		}
		if got := string(<-c.writes); got != want.String() {
			t.Errorf("%q behind it", got)
		}
		synctest.Wait()
		select {
		case got := <-c.writes:
			t.Errorf("%q as well", got)
		default:
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
}

// refusedConn is a connection to a server that hangs up, and whose last words come after a write has
// failed.
type refusedConn struct {
	slowConn
	words  error
	closed chan struct{}
}

func (c *refusedConn) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func (c *refusedConn) Read([]byte) (int, error) {
	select {
	case <-time.After(50 * time.Millisecond):
		return 0, c.words
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *refusedConn) Close() error {
	close(c.closed)
	return nil
}

// A server that does not want the client's certificate says so and hangs up. The reason is read
// although a write fails first; a reader without an answer ends soon after.
func TestLastWordsAreRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		alert := &net.OpError{Op: "remote error", Err: io.ErrUnexpectedEOF}
		c := &refusedConn{words: alert, closed: make(chan struct{})}
		p := newPipe(c)
		if _, err := p.Write([]byte("AMQP")); err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		_, err := p.Read(make([]byte, 1))
		if err == nil || !errors.Is(p.lastWords(), alert) {
			t.Errorf("read %v, and the last words are %v", err, p.lastWords())
		}
		<-c.closed
		if took := time.Since(begun); took > time.Second {
			t.Errorf("the connection is closed after %v", took)
		}
	})
}
