package conformance_test

import (
	"context"
	"errors"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/millrace-go/millrace/adapters/memory"
	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/conformance"
)

// broken is the memory driver with something wrong. A hook that is nil leaves its part as it is.
type broken struct {
	driver.Driver
	publish   func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error
	subscribe func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error)
	receive   func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error)
	settle    func(s bus.Source, ctx context.Context, tokens []bus.Token) error
	park      func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error
	inject    func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error
	close     func(s bus.Source, ctx context.Context) error
	poison    func(s driver.PoisonStore) driver.PoisonStore
	caps      func(c bus.Capabilities) bus.Capabilities
	shut      func(d driver.Driver, ctx context.Context) error
}

func (b *broken) Publish(ctx context.Context, topic string, msgs []*bus.Message) error {
	if b.publish != nil {
		return b.publish(b.Driver, ctx, topic, msgs)
	}
	return b.Driver.Publish(ctx, topic, msgs)
}

func (b *broken) Subscribe(ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
	subscribe := func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
		return d.Subscribe(ctx, s, o)
	}
	if b.subscribe != nil {
		subscribe = b.subscribe
	}
	src, err := subscribe(b.Driver, ctx, s, o)
	if err != nil {
		return nil, err
	}
	return &brokenSource{Source: src, b: b}, nil
}

func (b *broken) Poison(ctx context.Context, group string) (driver.PoisonStore, error) {
	s, err := b.Driver.Poison(ctx, group)
	if err == nil && b.poison != nil {
		s = b.poison(s)
	}
	return s, err
}

func (b *broken) Inject(ctx context.Context, topic, group string, ps []driver.Parking) error {
	d := b.Driver.(driver.Injector)
	if b.inject != nil {
		return b.inject(d, ctx, topic, group, ps)
	}
	return d.Inject(ctx, topic, group, ps)
}

func (b *broken) Capabilities() bus.Capabilities {
	if b.caps != nil {
		return b.caps(b.Driver.Capabilities())
	}
	return b.Driver.Capabilities()
}

func (b *broken) Close(ctx context.Context) error {
	if b.shut != nil {
		return b.shut(b.Driver, ctx)
	}
	return b.Driver.Close(ctx)
}

type brokenSource struct {
	bus.Source
	b *broken
}

func (s *brokenSource) Receive(ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
	if s.b.receive != nil {
		return s.b.receive(s.Source, ctx, dst, maxBytes)
	}
	return s.Source.Receive(ctx, dst, maxBytes)
}

func (s *brokenSource) Settle(ctx context.Context, tokens []bus.Token) error {
	if s.b.settle != nil {
		return s.b.settle(s.Source, ctx, tokens)
	}
	return s.Source.Settle(ctx, tokens)
}

func (s *brokenSource) Park(ctx context.Context, ps []driver.Parking) error {
	p := s.Source.(driver.ParkingSource)
	if s.b.park != nil {
		return s.b.park(p, ctx, ps)
	}
	return p.Park(ctx, ps)
}

func (s *brokenSource) Fetch(ctx context.Context, tokens []bus.Token, dst []bus.Delivery) (int, error) {
	return s.Source.(driver.ParkingSource).Fetch(ctx, tokens, dst)
}

// SettleWith is no transaction: a failure after the outputs are published repeats them.
func (s *brokenSource) SettleWith(ctx context.Context, ss []driver.Settlement) error {
	var tokens []bus.Token
	for _, one := range ss {
		for _, o := range one.Outputs {
			if err := s.b.Driver.Publish(ctx, o.Topic, []*bus.Message{o.Message}); err != nil {
				return err
			}
		}
		tokens = append(tokens, one.Token)
	}
	return s.Settle(ctx, tokens)
}

func (s *brokenSource) Close(ctx context.Context) error {
	if s.b.close != nil {
		return s.b.close(s.Source, ctx)
	}
	return s.Source.Close(ctx)
}

// edit is a driver that changes messages on their way in.
func edit(f func(m *bus.Message)) *broken {
	return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
		changed := make([]*bus.Message, len(msgs))
		for i, m := range msgs {
			changed[i] = m.Clone()
			f(changed[i])
		}
		return d.Publish(ctx, topic, changed)
	}}
}

// filter is a driver that changes batches on their way out; the hook returns how many deliveries
// are left.
func filter(f func(dst []bus.Delivery) int) *broken {
	return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
		for {
			n, err := s.Receive(ctx, dst, maxBytes)
			if n = f(dst[:n]); n > 0 || err != nil {
				return n, err
			}
		}
	}}
}

// poisonHooks is a poison store with something wrong.
type poisonHooks struct {
	driver.PoisonStore
	put    func(s driver.PoisonStore, ctx context.Context, entries []driver.PoisonEntry) error
	list   func(s driver.PoisonStore, ctx context.Context) iter.Seq2[driver.PoisonEntry, error]
	remove func(s driver.PoisonStore, ctx context.Context, ids []string) error
}

func (p *poisonHooks) Put(ctx context.Context, entries ...driver.PoisonEntry) error {
	if p.put != nil {
		return p.put(p.PoisonStore, ctx, entries)
	}
	return p.PoisonStore.Put(ctx, entries...)
}

func (p *poisonHooks) List(ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
	if p.list != nil {
		return p.list(p.PoisonStore, ctx)
	}
	return p.PoisonStore.List(ctx)
}

func (p *poisonHooks) Remove(ctx context.Context, ids ...string) error {
	if p.remove != nil {
		return p.remove(p.PoisonStore, ctx, ids)
	}
	return p.PoisonStore.Remove(ctx, ids...)
}

// defect is a driver broken on purpose, with the checks that must notice.
type defect struct {
	name    string
	make    func() *broken
	noticed []string
	long    bool // the checks take more than a few seconds
}

// twice is a driver that publishes everything twice. It says that it has transactions.
func twice() *broken {
	return &broken{
		caps: func(c bus.Capabilities) bus.Capabilities { c.Transactions = true; return c },
		publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			return d.Publish(ctx, topic, append(slices.Clone(msgs), msgs...))
		},
	}
}

// dueless is a driver that forgets when parked messages are due.
func dueless() *broken {
	return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
		for i := range ps {
			ps[i].Due = time.Time{}
		}
		return s.Park(ctx, ps)
	}}
}

// tryless is a driver that forgets how often parked messages were tried. It says that it has
// transactions.
func tryless() *broken {
	return &broken{
		caps: func(c bus.Capabilities) bus.Capabilities { c.Transactions = true; return c },
		park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			for i := range ps {
				ps[i].Attempt, ps[i].Failure = 1, nil
			}
			return s.Park(ctx, ps)
		},
	}
}

var defects = []defect{
	{
		name: "payloads: nil becomes empty",
		make: func() *broken {
			return edit(func(m *bus.Message) {
				if m.Payload == nil {
					m.Payload = []byte{}
				}
			})
		},
		noticed: []string{"round-trip/fields"},
	},
	{name: "headers: repeats are dropped", make: func() *broken {
		return edit(func(m *bus.Message) {
			for i := range m.Headers {
				m.Headers.Set(m.Headers[i].Name, m.Headers.Get(m.Headers[i].Name))
				if i >= len(m.Headers)-1 {
					return
				}
			}
		})
	}, noticed: []string{"round-trip/fields", "failure/permanent"}},
	{name: "large payloads are cut", make: func() *broken {
		return edit(func(m *bus.Message) { m.Payload = m.Payload[:min(len(m.Payload), 100_000)] })
	}, noticed: []string{"round-trip/large"}},
	{name: "the key is lost", make: func() *broken { return edit(func(m *bus.Message) { m.Key = "" }) }, noticed: []string{"round-trip/through-the-router", "order/keys", "order/keys-while-failing", "failure/retry"}},
	{
		name: "publish: one of many is dropped, and nobody is told",
		make: func() *broken {
			var n atomic.Int64
			return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
				kept := slices.DeleteFunc(slices.Clone(msgs), func(*bus.Message) bool { return n.Add(1)%37 == 0 })
				return d.Publish(ctx, topic, kept)
			}}
		},
		noticed: []string{"publish/concurrent", "groups/fan-out", "groups/topics-apart", "groups/published-before", "groups/late", "groups/start-at", "lifecycle/pause"},
	},
	{name: "publish: an error is at the wrong index", make: func() *broken {
		return &broken{caps: func(c bus.Capabilities) bus.Capabilities { c.MaxMessage = 1 << 20; return c }, publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			if len(msgs) == 2 {
				return &bus.PublishError{Errs: []error{nil, errors.New("wrong place")}}
			}
			return d.Publish(ctx, topic, msgs)
		}}
	}, noticed: []string{"publish/errors-aligned"}},
	{name: "publish: an ended context is not heeded", make: func() *broken {
		return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			return d.Publish(context.WithoutCancel(ctx), topic, msgs)
		}}
	}, noticed: []string{"publish/cancelled"}},
	{name: "publish: works after close", make: func() *broken {
		return &broken{shut: func(driver.Driver, context.Context) error { return nil }}
	}, noticed: []string{"publish/closed"}},
	{name: "publish: says not published although it was", make: func() *broken {
		var n atomic.Int64
		return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			err := d.Publish(ctx, topic, msgs)
			if n.Add(1)%50 == 0 {
				return driver.FailAll(len(msgs), &bus.Error{Op: "publish", Err: errors.New("lie"), Definite: true})
			}
			return err
		}}
	}, noticed: []string{"publish/close-meanwhile"}},
	{name: "ids change on the way", make: func() *broken {
		var n atomic.Int64
		return edit(func(m *bus.Message) {
			if m.ID == "good" {
				m.ID += strconv.FormatInt(n.Add(1), 10)
			}
		})
	}, noticed: []string{"failure/deduplicate"}},
	{name: "headers are lost", make: func() *broken { return edit(func(m *bus.Message) { m.Headers = nil }) }, noticed: []string{"failure/correlation", "request/replies", "request/late"}},
	{name: "every message comes twice, and it takes long", make: twice, noticed: []string{"failure/unavailable", "ways/at-most-once", "ways/at-most-once-batch", "ways/at-least-once-batch", "ways/exactly-once-batch"}, long: true},
	{name: "every message comes twice", make: twice, noticed: []string{"groups/share", "order/concurrency-beyond-lanes", "bounds/in-flight", "bounds/bytes", "lifecycle/drain", "failure/batch", "failure/emit"}},
	{name: "two messages of a key are swapped", make: func() *broken {
		return filter(func(dst []bus.Delivery) int {
			first := map[string]int{}
			for i := range dst {
				if j, ok := first[dst[i].Key]; ok {
					dst[i], dst[j] = dst[j], dst[i]
					break
				}
				first[dst[i].Key] = i
			}
			return len(dst)
		})
	}, noticed: []string{"order/keys", "order/slow-key-delays-nobody", "bounds/receive"}},
	{name: "deliveries are lost on the way out", make: func() *broken {
		var n atomic.Int64
		return filter(func(dst []bus.Delivery) int {
			kept := 0
			for _, d := range dst {
				if n.Add(1)%7 != 0 {
					dst[kept] = d
					kept++
				}
			}
			return kept
		})
	}, noticed: []string{"round-trip/fields", "groups/latest", "lifecycle/drain"}},
	{name: "records that cannot be decoded stop the source", make: func() *broken {
		return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			n, err := s.Receive(ctx, dst[:1], maxBytes)
			if n == 1 && (strings.HasPrefix(dst[0].ContentType, "image/") || dst[0].Type == "typeC") {
				return 0, errors.New("cannot decode")
			}
			return n, err
		}}
	}, noticed: []string{"failure/undecodable", "types/strict"}},
	{name: "receive: the bounds are not kept", make: func() *broken {
		return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, _ int) (int, error) {
			return s.Receive(ctx, dst, 1<<40)
		}}
	}, noticed: []string{"bounds/receive"}},
	{name: "receive: does not end with its context", make: func() *broken {
		return &broken{receive: func(s bus.Source, _ context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			return s.Receive(context.Background(), dst, maxBytes)
		}}
	}, noticed: []string{"lifecycle/receive-ends"}},
	{name: "settle: does nothing", make: func() *broken {
		return &broken{settle: func(bus.Source, context.Context, []bus.Token) error { return nil }}
	}, noticed: []string{"lifecycle/drain", "lifecycle/finished-beyond-unfinished", "members/stale-settle", "members/leave-and-join", "failure/at-most-once"}},
	{name: "settle: everything received is settled at once", make: func() *broken {
		return &broken{receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			n, err := s.Receive(ctx, dst, maxBytes)
			for i := range n {
				_ = s.Settle(ctx, []bus.Token{dst[i].Token})
			}
			return n, err
		}}
	}, noticed: []string{"lifecycle/drain", "lifecycle/finished-beyond-unfinished", "failure/healthy-at-shutdown", "members/stale-settle", "members/leave-and-join"}},
	{name: "settle: stale tokens are no error", make: func() *broken {
		return &broken{settle: func(s bus.Source, ctx context.Context, tokens []bus.Token) error {
			_ = s.Settle(ctx, tokens)
			return nil
		}}
	}, noticed: []string{"members/stale-settle"}},
	{name: "lanes are not assigned before they deliver", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			return d.Subscribe(ctx, s, unassigned{o})
		}}
	}, noticed: []string{"bounds/receive", "types/routing", "failure/exhausted", "lifecycle/no-goroutine-left"}},
	{name: "latest begins at the start", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			s.Start = bus.Earliest
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"groups/latest", "groups/start-at"}},
	{name: "a durable bus forgets", make: func() *broken {
		return &broken{caps: func(c bus.Capabilities) bus.Capabilities { c.Durable = true; return c }}
	}, noticed: []string{"lifecycle/restart"}},
	{name: "close: says that it failed", make: func() *broken {
		return &broken{shut: func(d driver.Driver, ctx context.Context) error {
			return errors.Join(d.Close(ctx), errors.New("failed"))
		}}
	}, noticed: []string{"lifecycle/concurrent-close"}},
	{name: "a goroutine is left", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			go func() { <-leaked }()
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"lifecycle/no-goroutine-left"}},
	{name: "groups share what each should have", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			s.Group = "one"
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"groups/fan-out", "groups/late"}},
	{name: "poison: entries are forgotten", make: func() *broken {
		return &broken{poison: func(s driver.PoisonStore) driver.PoisonStore {
			return &poisonHooks{PoisonStore: s, put: func(driver.PoisonStore, context.Context, []driver.PoisonEntry) error { return nil }}
		}}
	}, noticed: []string{"poison/store", "poison/concurrent", "poison/away", "failure/permanent", "failure/exhausted", "types/strict"}},
	{name: "poison: no entry is replaced", make: func() *broken {
		return &broken{poison: func(s driver.PoisonStore) driver.PoisonStore {
			return &poisonHooks{PoisonStore: s, put: func(s driver.PoisonStore, ctx context.Context, entries []driver.PoisonEntry) error {
				for i := range entries {
					entries[i].ID = bus.NewID()
				}
				return s.Put(ctx, entries...)
			}}
		}}
	}, noticed: []string{"poison/store", "poison/lane-lost"}},
	{name: "poison: looking removes", make: func() *broken {
		return &broken{poison: func(s driver.PoisonStore) driver.PoisonStore {
			return &poisonHooks{PoisonStore: s, list: func(s driver.PoisonStore, ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
				return func(yield func(driver.PoisonEntry, error) bool) {
					for e, err := range s.List(ctx) {
						_ = s.Remove(ctx, e.ID)
						if !yield(e, err) {
							return
						}
					}
				}
			}}
		}}
	}, noticed: []string{"poison/store"}},
	{name: "poison: nothing can be removed", make: func() *broken {
		return &broken{poison: func(s driver.PoisonStore) driver.PoisonStore {
			return &poisonHooks{PoisonStore: s, remove: func(driver.PoisonStore, context.Context, []string) error { return nil }}
		}}
	}, noticed: []string{"poison/store", "poison/replay-interrupted"}},
}

// parkingDefects are defects in the handling of parked messages.
var parkingDefects = []defect{
	{name: "delay: it gets lost on the way", make: func() *broken {
		return edit(func(m *bus.Message) {
			m.Headers = slices.DeleteFunc(m.Headers, func(h bus.Header) bool { return h.Name == bus.HeaderDeliverAt })
		})
	}, noticed: []string{"delay/publish"}},
	{name: "delay: cancellations get lost", make: func() *broken {
		return &broken{publish: func(d driver.Driver, ctx context.Context, topic string, msgs []*bus.Message) error {
			return d.Publish(ctx, topic, slices.DeleteFunc(slices.Clone(msgs), func(m *bus.Message) bool { return m.Type == bus.TypeCancellation }))
		}}
	}, noticed: []string{"delay/cancel"}, long: true},
	{name: "parking: what waits slows down what comes", make: func() *broken {
		return whileSomethingWaits(func(n int) { time.Sleep(time.Duration(n) * 100 * time.Microsecond) })
	}, noticed: []string{"load/a-key-waits", "load/a-key-waits-elsewhere", "load/many-keys-wait"}, long: true},
	{name: "parking: what comes takes memory while something waits", make: func() *broken {
		var kept [][]byte
		return whileSomethingWaits(func(n int) { kept = append(kept, make([]byte, n<<10)) })
	}, noticed: []string{"load/a-key-waits"}, long: true},
	{name: "settle: what is parked stays", make: func() *broken {
		return &broken{settle: func(s bus.Source, ctx context.Context, tokens []bus.Token) error {
			return s.Settle(ctx, slices.DeleteFunc(slices.Clone(tokens), func(t bus.Token) bool { return t.Parked }))
		}}
	}, noticed: []string{"delay/cancel", "poison/replay-at-most-once"}, long: true},
	{name: "transactions: outputs are published beside the settlement", make: func() *broken {
		var failed atomic.Bool
		return &broken{
			caps: func(c bus.Capabilities) bus.Capabilities { c.Transactions = true; return c },
			settle: func(s bus.Source, ctx context.Context, tokens []bus.Token) error {
				if !failed.Swap(true) {
					return errors.New("not now")
				}
				return s.Settle(ctx, tokens)
			},
		}
	}, noticed: []string{"transactions/exactly-once"}},
	{name: "parking: due times are lost", make: dueless, noticed: []string{"delay/retry", "parking/store"}},
	{name: "parking: due times are lost, and it takes long", make: dueless, noticed: []string{"delay/many-keys"}, long: true},
	{name: "parking: keys wait for messages that are free", make: func() *broken {
		return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			for i := range ps {
				ps[i].Delayed = false
			}
			return s.Park(ctx, ps)
		}}
	}, noticed: []string{"parking/store"}},
	{name: "parking: tries are forgotten", make: tryless, noticed: []string{"parking/store", "poison/key-waits-elsewhere"}},
	{name: "parking: tries are forgotten, and it takes long", make: tryless, noticed: []string{"ways/exactly-once"}, long: true},
	{name: "parking: what is parked a second time is lost", make: func() *broken {
		return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			var again []bus.Token
			for i := range ps {
				if ps[i].Token.Parked {
					again = append(again, ps[i].Token)
				}
			}
			return errors.Join(s.Park(ctx, ps), s.Settle(ctx, again))
		}}
	}, noticed: []string{"ways/at-least-once"}, long: true},
	{name: "parking: nobody says that a token is stale", make: func() *broken {
		return &broken{park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			if err := s.Park(ctx, ps); !errors.Is(err, bus.ErrStale) {
				return err
			}
			return nil
		}}
	}, noticed: []string{"parking/stale"}},
	{name: "inject: a group that does not exist will do", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error {
			if err := d.Inject(ctx, topic, group, ps); !errors.Is(err, bus.ErrNotFound) {
				return err
			}
			return nil
		}}
	}, noticed: []string{"parking/inject"}},
	{name: "inject: all groups are given what one is to have", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, _ string, ps []driver.Parking) error {
			for i := range ps {
				if err := d.(driver.Driver).Publish(ctx, topic, []*bus.Message{ps[i].Message}); err != nil {
					return err
				}
			}
			return nil
		}}
	}, noticed: []string{"poison/replay"}},
	{name: "inject: what waits is given back as something new", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error {
			for i := range ps {
				ps[i].Token = bus.Token{}
			}
			return d.Inject(ctx, topic, group, ps)
		}}
	}, noticed: []string{"poison/key-waits"}},
	{name: "inject: the last message is forgotten", make: func() *broken {
		return &broken{inject: func(d driver.Injector, ctx context.Context, topic, group string, ps []driver.Parking) error {
			return d.Inject(ctx, topic, group, ps[:len(ps)-1])
		}}
	}, noticed: []string{"parking/inject"}},
}

// whileSomethingWaits does something for each n messages received while messages wait in the same
// topic.
func whileSomethingWaits(do func(n int)) *broken {
	var waits atomic.Bool
	return &broken{
		park: func(s driver.ParkingSource, ctx context.Context, ps []driver.Parking) error {
			waits.Store(true)
			return s.Park(ctx, ps)
		},
		receive: func(s bus.Source, ctx context.Context, dst []bus.Delivery, maxBytes int) (int, error) {
			n, err := s.Receive(ctx, dst, maxBytes)
			if waits.Load() && n > 0 && strings.HasPrefix(dst[0].Topic, "conf-waiting-") {
				do(n)
			}
			return n, err
		},
	}
}

// leaked ends the goroutines that a defect left, at the end of all tests.
var leaked = make(chan struct{})

// unassigned keeps assignments from the router.
type unassigned struct{ bus.LaneObserver }

func (unassigned) Assigned([]bus.Lane) {}

// TestBrokenDriversAreNoticed: a check is worth something if it has been seen to fail.
func TestBrokenDriversAreNoticed(t *testing.T) {
	defer close(leaked)
	var mu sync.Mutex
	failedOnce := map[string]bool{}
	t.Run("defects", func(t *testing.T) {
		for i, d := range append(defects, parkingDefects...) {
			t.Run(d.name, func(t *testing.T) {
				t.Parallel()
				b := d.make()
				open := func(context.Context) (*bus.Bus, error) {
					m, err := memory.Open(memory.Config{Name: "broken-" + strconv.Itoa(i)})
					if err != nil {
						return nil, err
					}
					one := *b
					one.Driver = driver.Of(m)
					return bus.New(&one), nil
				}
				pattern := regexp.MustCompile("^(" + strings.Join(d.noticed, "|") + ")$")
				timeout := 3 * time.Second
				if d.long {
					timeout = 30 * time.Second
				}
				seen := 0
				for r := range conformance.Verify(t.Context(), open, conformance.Options{Run: pattern, Timeout: timeout}) {
					seen++
					if r.Status != conformance.Fail {
						t.Errorf("%s: %s %s", r.Test, r.Status, r.Detail)
						continue
					}
					mu.Lock()
					failedOnce[r.Test] = true
					mu.Unlock()
				}
				if seen != len(d.noticed) {
					t.Errorf("%d of the checks %v exist", seen, d.noticed)
				}
			})
		}
	})
	for _, name := range conformance.Checks() {
		if !failedOnce[name] {
			t.Errorf("check %s was not seen to fail against any broken driver", name)
		}
	}
}
