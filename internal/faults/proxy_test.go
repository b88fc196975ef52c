package faults_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/millrace-go/millrace/internal/faults"
)

// echo is a server that sends its clients' data back, and reports it.
func echo(t *testing.T) (address string, got <-chan string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	told := make(chan string, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				buf := make([]byte, 1024)
				for {
					n, err := c.Read(buf)
					if err != nil {
						return
					}
					told <- string(buf[:n])
					if _, err := c.Write(buf[:n]); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String(), told
}

type client struct {
	net.Conn
	t *testing.T
}

func dial(t *testing.T, p *faults.Proxy) client {
	c, err := net.Dial("tcp", p.Address())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return client{c, t}
}

func (c client) say(text string) {
	c.t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		c.t.Fatal(err)
	}
}

// hear reads so many bytes, or less if the connection ends before.
func (c client) hear(n int) (text string, ended bool) {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	buf := make([]byte, n)
	n, err := io.ReadFull(c, buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.t.Fatal("nothing came")
	}
	return string(buf[:n]), err != nil
}

func (c client) want(text string) {
	c.t.Helper()
	if got, ended := c.hear(len(text)); got != text || ended {
		c.t.Fatalf("heard %q, want %q", got, text)
	}
}

// want2 returns which of two texts of equal length came.
func (c client) want2(a, b string) int {
	c.t.Helper()
	got, ended := c.hear(len(a))
	if ended || got != a && got != b {
		c.t.Fatalf("heard %q, want %q or %q", got, a, b)
	}
	if got == a {
		return 0
	}
	return 1
}

func (c client) wantEnd(text string) {
	c.t.Helper()
	if got, ended := c.hear(100); got != text || !ended {
		c.t.Fatalf("heard %q, want %q and the end", got, text)
	}
}

func TestCuts(t *testing.T) {
	address, _ := echo(t)
	p := faults.NewProxy(t, address)
	a, b := dial(t, p), dial(t, p)
	a.say("1")
	a.want("1")
	b.say("2")
	b.want("2")
	p.Cut()
	a.wantEnd("")
	b.wantEnd("")
	p.Refuse(true)
	dial(t, p).wantEnd("")
	p.Refuse(false)
	c := dial(t, p)
	c.say("3")
	c.want("3")
}

func TestCutAfter(t *testing.T) {
	address, got := echo(t)
	p := faults.NewProxy(t, address)
	other := dial(t, p)
	other.say("x")
	other.want("x")
	<-got
	c := dial(t, p)
	p.CutAfter(faults.ToClient, 5)
	c.say("abc")
	c.want("abc")
	c.say("defg")
	c.wantEnd("de")
	other.wantEnd("")
	c = dial(t, p)
	p.CutAfter(faults.ToServer, 2)
	<-got
	<-got
	c.say("hij")
	if text := <-got; text != "hi" {
		t.Errorf("the server was sent %q", text)
	}
}

func TestCutAnswer(t *testing.T) {
	address, got := echo(t)
	p := faults.NewProxy(t, address)
	c := dial(t, p)
	p.CutAnswer(func(request []byte) bool { return string(request) == "COMMIT" })
	c.say("SELECT")
	c.want("SELECT")
	<-got
	c.say("COMMIT")
	if text := <-got; text != "COMMIT" {
		t.Errorf("the server was sent %q", text)
	}
	c.wantEnd("")
	c = dial(t, p)
	c.say("COMMIT")
	c.want("COMMIT") // once
}

func TestStall(t *testing.T) {
	address, got := echo(t)
	p := faults.NewProxy(t, address)
	c := dial(t, p)
	p.Stall(faults.ToClient, true)
	c.say("1")
	if text := <-got; text != "1" {
		t.Errorf("the server was sent %q", text)
	}
	p.Stall(faults.ToServer, true)
	p.Stall(faults.ToClient, false)
	c.want("1")
	c.say("2")
	p.Heal()
	c.want("2")
}

func TestDelay(t *testing.T) {
	address, _ := echo(t)
	p := faults.NewProxy(t, address)
	p.Delay(20 * time.Millisecond)
	c := dial(t, p)
	start := time.Now()
	c.say("1")
	c.want("1")
	if took := time.Since(start); took < 40*time.Millisecond {
		t.Errorf("there and back took %v", took)
	}
}

func TestFilterAndSend(t *testing.T) {
	address, got := echo(t)
	p := faults.NewProxy(t, address)
	p.Filter(func(conn int, d faults.Direction, data []byte) []byte {
		return fmt.Appendf(nil, "%d%v%s.", conn, d == faults.ToServer, data)
	})
	a, b := dial(t, p), dial(t, p)
	a.say("x")
	first, second := "1", "2"
	if a.want2("1false1truex..", "2false2truex..") == 1 {
		first, second = second, first
	}
	if text := <-got; text != first+"truex." {
		t.Errorf("the server was sent %q", text)
	}
	b.say("y")
	b.want(second + "false" + second + "truey..")
	<-got
	p.Filter(nil)
	p.Send(faults.ToClient, []byte("1"))
	a.want("1")
	b.want("1")
	p.Send(faults.ToServer, []byte("2"))
	a.want("2")
	b.want("2")
}
