package sqltest

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/internal/brokertest"
)

const lanes = 16 // the default

// shares lets members come and go: the lanes are always spread evenly.
func shares(t *testing.T, db Database) {
	topic := Topic()
	var sources []bus.Source
	var observers []*Observer
	for n := 1; n <= 3; n++ {
		o := NewObserver()
		observers = append(observers, o)
		sources = append(sources, Subscribe(t, db.Open(t), topic, "g", bus.Earliest, o))
		for i, o := range observers {
			want := lanes / n
			if i < lanes%n {
				want++
			}
			o.Await(t, want)
		}
	}
	Close(t, sources[0])
	observers[1].Await(t, lanes/2)
	observers[2].Await(t, lanes/2)
	Close(t, sources[2])
	observers[1].Await(t, lanes)
}

// handOverKeepsOrder has members joining and leaving under load: nothing is lost, nothing that was
// settled comes again, and no key is ever handled by two at once or out of order.
func handOverKeepsOrder(t *testing.T, db Database) {
	const keys, each = 40, 50
	topic := Topic()
	ledger := &ledger{next: map[string]int{}, busy: map[string]bool{}, want: keys * each, done: make(chan struct{})}
	publisher := db.Open(t)
	var stop []func()
	join := func() { stop = append(stop, ledger.member(t, db, topic)) }
	join()
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range each {
			msgs := make([]*bus.Message, keys)
			for k := range msgs {
				msgs[k] = &bus.Message{Key: fmt.Sprint(k), Payload: fmt.Append(nil, i)}
			}
			Publish(t, publisher, topic, msgs...)
			switch i {
			case 10, 20:
				join()
			case 30:
				stop[0]()
			case 40:
				join()
				stop[1]()
			}
		}
	})
	publishing.Wait()
	select {
	case <-ledger.done:
	case <-time.After(patience):
		ledger.mu.Lock()
		t.Errorf("%d of %d messages were handled", ledger.n, ledger.want)
		ledger.mu.Unlock()
	}
	for _, s := range stop[2:] {
		s()
	}
}

// ledger checks the messages that several members handle together.
type ledger struct {
	mu      sync.Mutex
	next    map[string]int
	busy    map[string]bool
	n, want int
	done    chan struct{}
}

// member handles messages until it is stopped, as the router does: on revocation it settles the
// messages it has begun, and begins nothing more.
func (l *ledger) member(t *testing.T, db Database, topic string) (stop func()) {
	o := NewObserver()
	var handling sync.Mutex // held while a batch is being handled
	o.OnRevoking = func(_ context.Context, lanes []bus.Lane) {
		handling.Lock()
		defer handling.Unlock()
		o.mu.Lock()
		defer o.mu.Unlock()
		for _, lane := range lanes {
			delete(o.owned, lane)
		}
	}
	b := db.Open(t)
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]bus.Delivery, 20)
		for {
			n, err := s.Receive(ctx, buf, 1<<20)
			if err != nil {
				if ctx.Err() == nil {
					t.Error(err)
				}
				return
			}
			handling.Lock()
			var settled []bus.Delivery
			for _, d := range buf[:n] {
				if o.Owns(&d) {
					l.handle(t, &d)
					settled = append(settled, d)
				}
			}
			if err := s.Settle(context.Background(), tokens(settled)); err != nil {
				t.Error(err)
			}
			handling.Unlock()
			for len(o.Events) > 0 {
				<-o.Events
			}
		}
	}()
	return func() {
		cancel()
		<-ended
		Close(t, s)
	}
}

func (l *ledger) handle(t *testing.T, d *bus.Delivery) {
	l.mu.Lock()
	if l.busy[d.Key] {
		t.Errorf("key %s is handled by two at once", d.Key)
	}
	l.busy[d.Key] = true
	if want := fmt.Sprint(l.next[d.Key]); string(d.Payload) != want {
		t.Errorf("key %s: %s came, want %s", d.Key, d.Payload, want)
	}
	l.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.busy[d.Key] = false
	l.next[d.Key]++
	if l.n++; l.n == l.want {
		close(l.done)
	}
}

// revokedIsSettled: a message settled before Revoking returns does not come again. A later
// settlement is refused.
func revokedIsSettled(t *testing.T, db Database) {
	b := db.Open(t)
	topic := Topic()
	o := NewObserver()
	revoking, finish := make(chan []bus.Lane, 1), make(chan struct{})
	o.OnRevoking = func(_ context.Context, lanes []bus.Lane) {
		revoking <- lanes
		<-finish
	}
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	Publish(t, b, topic, Texts(numbers(100)...)...)
	ds := Receive(t, s, 100)
	next := NewObserver()
	successor := Subscribe(t, db.Open(t), topic, "g", bus.Earliest, next)
	leaving := <-revoking
	isLeaving := func(d bus.Delivery) bool {
		return slices.Contains(leaving, bus.Lane{ID: d.Lane, Epoch: d.Epoch})
	}
	var settled, late []bus.Delivery
	for i, d := range ds {
		switch {
		case !isLeaving(d):
		case i%2 == 0:
			settled = append(settled, d)
		default:
			late = append(late, d)
		}
	}
	Settle(t, s, settled...)
	close(finish)
	next.Await(t, lanes/2)
	if err := s.Settle(bounded(t), tokens(late)); !errors.Is(err, bus.ErrStale) {
		t.Errorf("settling after the hand-over: %v", err)
	}
	if got, want := Payloads(Receive(t, successor, len(late))), Payloads(late); !slices.Equal(got, want) {
		t.Errorf("the successor got %v, want %v", got, want)
	}
}

// staleOwner takes the lanes of a member away behind its back, as another does when it takes the
// member for dead. The member's later settlements must not move the positions, and it must notice.
func staleOwner(t *testing.T, db Database) {
	topic := Topic()
	o := NewObserver()
	b := db.Open(t, "commit=1ms")
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	Publish(t, b, topic, Texts(numbers(64)...)...)
	ds := Receive(t, s, 64)
	o.Await(t, lanes)
	ofGroup := " WHERE grp = " + fmt.Sprint(db.groupID(t, topic))
	db.exec(t, "UPDATE "+db.Prefix+"lane SET owner = 'somebody', epoch = epoch + 1"+ofGroup)
	if err := s.Settle(bounded(t), tokens(ds)); err != nil && !errors.Is(err, bus.ErrStale) {
		t.Fatal(err)
	}
	timeout := time.After(patience)
	for lost := 0; lost < lanes; {
		select {
		case e := <-o.Events:
			if strings.HasPrefix(e, "lost") {
				lost += strings.Count(e, ":")
			}
		case <-timeout:
			t.Fatal("the old owner did not notice")
		}
	}
	if err := s.Settle(bounded(t), tokens(ds)); !errors.Is(err, bus.ErrStale) {
		t.Errorf("settling after the loss: %v", err)
	}
	if n := db.number(t, "SELECT SUM(pos) FROM "+db.Prefix+"lane"+ofGroup); n != 0 {
		t.Errorf("the old owner has moved the positions: %d", n)
	}
	// Somebody is no member, so the lanes are free.
	if got := Payloads(Receive(t, s, 64)); !slices.Equal(got, numbers(64)) {
		t.Errorf("again came %v", got)
	}
}

// deletedMember deletes a member, as another does when its lease has ended by the database's clock.
func deletedMember(t *testing.T, db Database) {
	topic := Topic()
	o := NewObserver()
	b := db.Open(t)
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	Publish(t, b, topic, Texts(numbers(64)...)...)
	ds := Receive(t, s, 64)
	o.Await(t, lanes)
	db.exec(t, "DELETE FROM "+db.Prefix+"member WHERE grp = "+fmt.Sprint(db.groupID(t, topic)))
	next := NewObserver()
	successor := Subscribe(t, db.Open(t), topic, "g", bus.Earliest, next)
	timeout := time.After(patience)
	for lost := false; !lost; {
		select {
		case e := <-o.Events:
			lost = strings.HasPrefix(e, "lost")
		case <-timeout:
			t.Fatal("the member did not notice")
		}
	}
	if err := s.Settle(bounded(t), tokens(ds)); !errors.Is(err, bus.ErrStale) {
		t.Errorf("settling after the loss: %v", err)
	}
	Close(t, s)
	next.Await(t, lanes)
	if got := Payloads(Receive(t, successor, 64)); !slices.Equal(got, numbers(64)) {
		t.Errorf("the successor got %v", got)
	}
}

func (db Database) groupID(t testing.TB, topic string) int64 {
	t.Helper()
	return db.number(t, fmt.Sprintf("SELECT id FROM %sgrp WHERE topic = %d AND name = 'g'", db.Prefix, db.topicID(t, topic)))
}

// killedProcess kills a process that owns all lanes and has settled a part: another takes over when
// the lease ends, and is given the rest.
func killedProcess(t *testing.T, db Database) {
	topic := Topic()
	b := db.Open(t, "lease=1s")
	Publish(t, b, topic, Texts(numbers(200)...)...)
	child := exec.Command(os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), childURL+"="+brokertest.With(db.URL, "lease=1s"), childTopic+"="+topic)
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = child.Process.Kill()
		_ = child.Wait() // that it was killed is known
	}()
	var settled []string
	lines := bufio.NewScanner(out)
	for lines.Scan() && lines.Text() != "committed" {
		settled = append(settled, lines.Text())
	}
	if len(settled) != 70 {
		t.Fatalf("the child settled %d", len(settled))
	}
	o := NewObserver()
	s := Subscribe(t, b, topic, "g", bus.Earliest, o)
	o.Await(t, lanes/2) // the child gives us our share
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	o.Await(t, lanes)
	var want []string
	for _, text := range numbers(200) {
		if !slices.Contains(settled, text) {
			want = append(want, text)
		}
	}
	if got := Payloads(Receive(t, s, len(want))); !slices.Equal(got, want) {
		t.Errorf("%d came, want the %d that the child had not settled", len(got), len(want))
	}
}

const (
	childURL   = "MILLRACE_TEST_CHILD_URL"
	childTopic = "MILLRACE_TEST_CHILD_TOPIC"
)

// Child is a process that tests kill: TestMain calls it first. It returns false if this is not the
// child. connect is the Connect function of Database.
func Child(connect func(url string) (*sql.DB, error)) bool {
	if config := os.Getenv(childShop); config != "" {
		fmt.Fprintln(os.Stderr, "child:", shopChild(config, connect)) // it returns only if it fails
		os.Exit(1)
	}
	url, topic := os.Getenv(childURL), os.Getenv(childTopic)
	if url == "" {
		return false
	}
	fmt.Fprintln(os.Stderr, "child:", child(url, topic)) // it returns only if it fails
	os.Exit(1)
	return true
}

func child(url, topic string) error {
	ctx := context.Background()
	b, err := bus.Open(ctx, url)
	if err != nil {
		return err
	}
	s, err := b.Driver().Subscribe(ctx, bus.Subscription{Topic: topic, Group: "g", InFlight: 1000, Bytes: 1 << 20}, NewObserver())
	if err != nil {
		return err
	}
	buf := make([]bus.Delivery, 200)
	var ds []bus.Delivery
	for len(ds) < len(buf) {
		n, err := s.Receive(ctx, buf[len(ds):], 1<<20)
		if err != nil {
			return err
		}
		ds = buf[:len(ds)+n]
	}
	var settled []bus.Token
	for i, d := range ds {
		if i%3 == 0 || i > 195 {
			settled = append(settled, d.Token)
			fmt.Println(string(d.Payload))
		}
	}
	if err := s.Settle(ctx, settled); err != nil {
		return err
	}
	// Lag commits the settlements made here.
	lagger, _ := bus.As[driver.Lagger](b)
	if _, err := lagger.Lag(ctx, topic, "g"); err != nil {
		return err
	}
	fmt.Println("committed")
	select {}
}

// firstSubscribes has many members creating the same group at once.
func firstSubscribes(t *testing.T, db Database) {
	topic := Topic()
	first := db.Open(t)
	Publish(t, first, topic, Texts("before")...)
	var joining sync.WaitGroup
	sources := make([]bus.Source, 6)
	for i := range sources {
		b := db.Open(t)
		joining.Go(func() {
			s, err := b.Driver().Subscribe(bounded(t), bus.Subscription{Topic: topic, Group: "g", Start: bus.Latest, InFlight: 10, Bytes: 1000}, NewObserver())
			if err != nil {
				t.Error(err)
				return
			}
			sources[i] = s
		})
	}
	joining.Wait()
	if t.Failed() {
		return
	}
	Publish(t, first, topic, Texts("after")...)
	got := make(chan string, len(sources))
	ctx, cancel := context.WithCancel(bounded(t))
	var receiving sync.WaitGroup
	for _, s := range sources {
		receiving.Go(func() {
			buf := make([]bus.Delivery, 1)
			if n, err := s.Receive(ctx, buf, 100); err == nil && n == 1 {
				got <- string(buf[0].Payload)
			}
		})
	}
	if text := <-got; text != "after" {
		t.Errorf("%q came", text)
	}
	cancel()
	receiving.Wait()
}
