package amqplink

import (
	"context"
	"errors"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Each parcel's fate is told at its place in the call: a parcel that cannot be made, one that the
// broker has no queue for, and those that are stored between them.
func TestPublishTellsEachFate(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := dialBroker(t)
	ch, err := s.Conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	queue, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.NewPipeline()
	if err != nil {
		t.Fatal(err)
	}
	bad := errors.New("bad")
	want := []error{nil, bad, ErrReturned, nil, bad, nil}
	errs := p.Publish(ctx, len(want), func(i int, x *Parcel) error {
		x.Key = queue.Name
		switch {
		case errors.Is(want[i], bad):
			return bad
		case want[i] != nil:
			x.Key = "no such queue"
		}
		x.Publishing = amqp.Publishing{Headers: NewTable(), Body: []byte{byte(i)}}
		return nil
	})
	for i := range want {
		if !errors.Is(errs[i], want[i]) || want[i] == nil && errs[i] != nil {
			t.Errorf("parcel %d: %v, want %v", i, errs[i], want[i])
		}
	}
	if !p.Idle() {
		t.Error("not all room was given back")
	}
	for _, i := range []int{0, 3, 5} {
		if m, ok, err := ch.Get(queue.Name, true); err != nil || !ok || int(m.Body[0]) != i {
			t.Errorf("got %v, %v, %v, want parcel %d", m.Body, ok, err, i)
		}
	}
}

// A caller with more parcels than there is room for does not wait for itself.
func TestPublishBeyondTheRoom(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s := dialBroker(t)
	p, err := s.NewPipeline()
	if err != nil {
		t.Fatal(err)
	}
	const n = 3 * PipelineMessages
	errs := p.Publish(ctx, n, func(_ int, x *Parcel) error {
		x.Key = "no such queue"
		return nil
	})
	for i := range n {
		if !errors.Is(errs[i], ErrReturned) {
			t.Fatalf("parcel %d: %v", i, errs[i])
		}
	}
	if !p.Idle() {
		t.Error("not all room was given back")
	}
}
