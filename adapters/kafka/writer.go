package kafka

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/millrace-go/millrace/bus"
)

// leastTransactionTimeout is the least time after which the broker aborts a dead process's
// transaction. Otherwise the time is the session timeout: earlier, nobody else is the lanes' owner.
const leastTransactionTimeout = 10 * time.Second

// writer is a source's transactional producer, guarded by commitLock. Its id is the member's own,
// because the group's generation fences members, not the id.
type writer struct {
	id     string
	client *kgo.Client // nil: none was needed, or the last one failed
	ends   ends        // of its transactions
}

// begin begins a transaction.
func (w *writer) begin(s *source) (*kgo.Client, error) {
	client, err := w.open(s)
	if err != nil {
		return nil, err
	}
	if err := client.BeginTransaction(); err != nil {
		w.drop()
		return nil, err
	}
	return client, nil
}

func (w *writer) open(s *source) (*kgo.Client, error) {
	if w.client != nil {
		return w.client, nil
	}
	if w.id == "" {
		w.id = "millrace." + s.sub.Group + "." + s.sub.Topic + "." + bus.NewID()
	}
	d := s.driver
	others, _ := d.client.OptValue(kgo.RecordPartitioner).(kgo.Partitioner) // outputs go where published messages go
	opts := append(d.options(d.producerOptions()...),
		kgo.TransactionalID(w.id),
		kgo.TransactionTimeout(max(d.config.SessionTimeout, leastTransactionTimeout)),
		kgo.RecordPartitioner(partitioner{s.parking, others}),
		// Before KIP-890 positions are added to a transaction by a request of their own, and with
		// it, they still may be: one way for both, which takes the version of before.
		kgo.MaxVersions(d.versions(kmsg.TxnOffsetCommit, 4)),
		kgo.WithHooks(&w.ends),
	)
	client, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, err
	}
	w.client = client
	return client, nil
}

// abortPatience bounds how long commitLock is held to abort a transaction. The broker would do it
// too, after the transaction's timeout; until then the readers of its outputs wait, and the next
// owner of the lanes.
const abortPatience = 5 * time.Second

// abort has the broker abort the client's transaction: a new client of the same id does so,
// whatever the old client believes.
func (w *writer) abort(s *source) {
	w.drop()
	client, err := w.open(s)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), abortPatience)
	defer cancel()
	if _, _, err := client.ProducerID(ctx); err != nil {
		w.drop() // the next one will
	}
}

// drop gives the client up. The next client of the same id aborts the dropped client's transaction.
func (w *writer) drop() {
	if w.client != nil {
		w.client.Close()
		w.client = nil
	}
}

// partitioner leaves records of the parking topic in the partition that they name.
type partitioner struct {
	parking string
	others  kgo.Partitioner
}

func (p partitioner) ForTopic(topic string) kgo.TopicPartitioner {
	if topic == p.parking {
		return kgo.ManualPartitioner().ForTopic(topic)
	}
	return p.others.ForTopic(topic)
}
