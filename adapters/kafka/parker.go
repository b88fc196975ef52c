package kafka

import (
	"context"
	"fmt"
	"sync"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/millrace-go/millrace/bus"
)

// parker writes to parking topics and poison queues. It has a client of its own, made when needed.
// Its records name their partition themselves, and they do not wait behind publishers' records.
type parker struct {
	known sync.Map // parking topic -> int32, how many partitions it has

	mu      sync.Mutex
	pen     *pen
	closed  bool
	retired sync.WaitGroup // clients that were replaced
}

// pen is a client and its users.
type pen struct {
	*kgo.Client
	users sync.WaitGroup
}

// take returns the client. The user reports when its records were handed to the client and waited
// for.
func (p *parker) take(d *busDriver) (*pen, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, bus.ErrClosed
	}
	if p.pen == nil {
		client, err := kgo.NewClient(append(d.options(d.producerOptions()...), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", bus.ErrInvalid, err)
		}
		p.pen = &pen{Client: client}
	}
	p.pen.users.Add(1)
	return p.pen, nil
}

// renew has the next records written by a new client, which asks anew for the partitions of topics,
// their ids and limits. To purge a topic from the client would do that, too, but then the client
// numbers its records from 0 again, as the same producer: the broker takes them for repeats,
// acknowledges them, and drops them.
func (p *parker) renew(d *busDriver) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.pen
	if old == nil || p.closed {
		return
	}
	p.pen = nil
	p.retired.Go(func() { old.retire(d) })
}

// retire closes a client when its records are confirmed, or the driver is closed.
func (p *pen) retire(d *busDriver) {
	ctx, cancel := context.WithTimeout(context.Background(), d.config.PublishTimeout)
	defer cancel()
	flushed := make(chan struct{})
	go func() {
		defer close(flushed)
		p.users.Wait()
		_ = p.Flush(ctx) // nobody waits for the remaining records
	}()
	select {
	case <-flushed:
	case <-d.closed:
	}
	p.Close()
	cancel()
	<-flushed
}

// close is called when nothing is written any more.
func (p *parker) close(ctx context.Context) error {
	p.mu.Lock()
	p.closed = true
	last := p.pen
	p.mu.Unlock()
	var err error
	if last != nil {
		err = last.Flush(ctx)
		last.Close()
	}
	p.retired.Wait()
	return err
}
