package outbox_test

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/outbox"
)

// childMark is the variable by which a test runs itself as a process to be killed.
const childMark = "MILLRACE_OUTBOX_TEST_CHILD"

type childConfig struct {
	Dialect outbox.Dialect
	Driver  string
	DSN     string
	Config  outbox.Config
	URL     string // "": the parent publishes
	Lease   time.Duration
	Inbox   *inboxChild // nil: it relays
}

// childEvent is a child's report to its parent: of a relay before and after it publishes, and of an
// inbox after it has handled.
type childEvent struct {
	Begun, Unknown []string // ids
	Handled        []string
	LeaseLosses    int
	Call           int // not 0: the parent is to publish, and to answer
	Topic          string
	Messages       []*bus.Message
}

type childAnswer struct {
	Call  int
	Error string
}

func child() {
	var c childConfig
	err := json.Unmarshal([]byte(os.Getenv(childMark)), &c)
	if err == nil {
		err = c.run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run works until it is killed or told to stop, or its parent has ended.
func (c *childConfig) run() error {
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	db, err := sql.Open(c.Driver, c.DSN)
	if err != nil {
		return err
	}
	o, err := outbox.New(c.Dialect, c.Config)
	if err != nil {
		return err
	}
	b, err := c.bus(ctx, cancel)
	if err != nil {
		return err
	}
	if c.Inbox != nil {
		return errors.Join(c.Inbox.run(ctx, c.Dialect, db, o, b), b.Close())
	}
	r, err := o.NewRelay(db, b, outbox.RelayConfig{Lease: c.Lease})
	if err != nil {
		return err
	}
	go func() {
		for range time.Tick(50 * time.Millisecond) { // there is no event for it
			if n := r.Stats().LeaseLosses; n > 0 {
				b.Driver().(*telling).tell(childEvent{LeaseLosses: n})
			}
		}
	}()
	return errors.Join(r.Run(ctx), b.Close())
}

// bus is a bus that reports its publishing to the parent.
func (c *childConfig) bus(ctx context.Context, stop func()) (*bus.Bus, error) {
	var b *bus.Bus
	var err error
	if c.URL == "" {
		b, err = memory.Open(memory.Config{})
	} else {
		b, err = bus.Open(ctx, c.URL)
	}
	if err != nil {
		return nil, err
	}
	d := &telling{Driver: driver.Of(b), remote: c.URL == "", out: json.NewEncoder(os.Stdout), calls: map[int]chan childAnswer{}}
	go func() {
		defer stop()
		d.listen(os.Stdin)
	}()
	return bus.New(d, bus.WithLogger(slog.New(slog.DiscardHandler))), nil
}

// telling is the driver of a child.
type telling struct {
	driver.Driver
	remote bool

	mu    sync.Mutex
	out   *json.Encoder
	calls map[int]chan childAnswer
	n     int
}

func (d *telling) tell(e childEvent) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.out.Encode(e) // without a parent it ends soon
}

// Publish implements driver.Driver.
func (d *telling) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if d.remote {
		return d.publish(ctx, topic, msgs)
	}
	d.tell(childEvent{Begun: ids(msgs)})
	err := d.Driver.Publish(ctx, topic, msgs)
	var unknown []string
	for i, m := range msgs {
		one := err
		if pe, ok := errors.AsType[*bus.PublishError](err); ok {
			one = pe.Errs[i]
		}
		if one != nil && !bus.IsDefinite(one) {
			unknown = append(unknown, m.ID)
		}
	}
	if unknown != nil {
		d.tell(childEvent{Unknown: unknown})
	}
	return err
}

// publish has the parent publish.
func (d *telling) publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	answer := make(chan childAnswer, 1)
	d.mu.Lock()
	d.n++
	n := d.n
	d.calls[n] = answer
	d.mu.Unlock()
	d.tell(childEvent{Begun: ids(msgs), Call: n, Topic: topic, Messages: msgs})
	select {
	case a := <-answer:
		if a.Error != "" {
			return errors.New(a.Error)
		}
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// listen takes the parent's answers until it has no more.
func (d *telling) listen(in io.Reader) {
	for dec := json.NewDecoder(in); ; {
		var a childAnswer
		if dec.Decode(&a) != nil {
			return
		}
		d.mu.Lock()
		d.calls[a.Call] <- a
		delete(d.calls, a.Call)
		d.mu.Unlock()
	}
}

// process is a running child, as the parent sees it.
type process struct {
	store *store
	cmd   *exec.Cmd
	in    io.WriteCloser
	over  chan struct{} // closed when all that it told was read
	begun map[string]bool
	// handled has the ids that an inbox has handled, also those it skipped because it had handled
	// them before.
	handled chan string
	// unknown counts the messages that the broker may or may not have.
	unknown     int
	leaseLosses int
}

// start runs a child. b is the bus to which the parent publishes for it; nil is none.
func (c childConfig) start(t *testing.T, s *store, b *bus.Bus) *process {
	t.Helper()
	c.Dialect, c.Driver, c.DSN, c.Config = s.dialect, s.driver, s.dsn, s.config
	config, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{store: s, cmd: exec.CommandContext(context.Background(), os.Args[0]), over: make(chan struct{}), begun: map[string]bool{}, handled: make(chan string, 100_000)}
	p.cmd.Env = append(os.Environ(), childMark+"="+string(config))
	p.cmd.Stderr = t.Output()
	out, err := p.cmd.StdoutPipe()
	if err == nil {
		p.in, err = p.cmd.StdinPipe()
	}
	if err == nil {
		err = p.cmd.Start()
	}
	if err != nil {
		t.Error(err)
		close(p.over)
		return p
	}
	go p.read(out, b)
	return p
}

func (p *process) read(out io.Reader, b *bus.Bus) {
	defer close(p.over)
	var calls sync.WaitGroup
	defer calls.Wait()
	var mu sync.Mutex
	answers := json.NewEncoder(p.in)
	for dec := json.NewDecoder(out); ; {
		var e childEvent
		if dec.Decode(&e) != nil {
			return
		}
		for _, id := range e.Begun {
			p.begun[id] = true
		}
		for _, id := range e.Handled {
			p.handled <- id
		}
		p.unknown += len(e.Unknown)
		p.leaseLosses = max(p.leaseLosses, e.LeaseLosses)
		if e.Call == 0 {
			continue
		}
		calls.Go(func() {
			a := childAnswer{Call: e.Call}
			if err := b.PublishMessages(context.Background(), e.Topic, e.Messages...); err != nil {
				a.Error = err.Error()
			}
			mu.Lock()
			defer mu.Unlock()
			_ = answers.Encode(a) // it may have been killed
		})
	}
}

// kill kills the process, and returns how many messages it had begun to publish that were still in
// the table: those may be repeated.
func (p *process) kill(t *testing.T) (inFlight int) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	<-p.over
	_ = p.cmd.Wait() // it was killed
	err := each(p.store, "SELECT id FROM "+p.store.table("outbox"), func(rows *sql.Rows) error {
		var id string
		err := rows.Scan(&id)
		if p.begun[id] {
			inFlight++
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return inFlight
}

// stop tells the process to end by itself.
func (p *process) stop(t *testing.T) {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Error(err)
	}
}

// wait waits until it has ended by itself.
func (p *process) wait(t *testing.T) {
	t.Helper()
	<-p.over
	err := p.cmd.Wait()
	if status, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus); err != nil && status.Signal() != syscall.SIGTERM { // before it had begun
		t.Error(err)
	}
}

// each calls f for each row of a query.
func each(s *store, text string, f func(*sql.Rows) error) error {
	rows, err := s.db.QueryContext(context.Background(), text)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}
