package amqplink

import (
	"bytes"
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
