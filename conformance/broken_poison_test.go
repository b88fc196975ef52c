package conformance_test

import (
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// poisonDefects are defects of poison stores.
var poisonDefects = []defect{
	{name: "poison: entries are forgotten", make: func() *broken {
		return &broken{poison: func(s driver.PoisonStore) driver.PoisonStore {
			return &poisonHooks{PoisonStore: s, put: func(driver.PoisonStore, context.Context, []driver.PoisonEntry) error { return nil }}
		}}
	}, noticed: []string{"poison/store", "poison/concurrent", "poison/away", "failure/permanent", "failure/exhausted", "types/unknown", "types/rolling-update"}},
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
	{name: "poison: what cannot be read ends the listing", make: func() *broken {
		return listed(func(e driver.PoisonEntry) (driver.PoisonEntry, error) {
			if e.Failure.Class == driver.Unreadable {
				return e, errors.New("cannot be read")
			}
			return e, nil
		})
	}, noticed: []string{"poison/unreadable"}},
	{name: "poison: what cannot be read is called a failure", make: func() *broken {
		return listed(func(e driver.PoisonEntry) (driver.PoisonEntry, error) {
			if e.Failure.Class == driver.Unreadable {
				e.Failure.Class = "permanent"
			}
			return e, nil
		})
	}, noticed: []string{"poison/unreadable"}},
	{name: "poison: what cannot be read is shown without its bytes", make: func() *broken {
		return listed(func(e driver.PoisonEntry) (driver.PoisonEntry, error) {
			if e.Failure.Class == driver.Unreadable {
				e.Message = &bus.Message{}
			}
			return e, nil
		})
	}, noticed: []string{"poison/unreadable"}},
	{name: "poison: what cannot be read stays for ever", make: func() *broken {
		return &broken{poison: func(s driver.PoisonStore) driver.PoisonStore {
			return &poisonHooks{PoisonStore: s, remove: func(s driver.PoisonStore, ctx context.Context, ids []string) error {
				return s.Remove(ctx, slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == "record" })...)
			}}
		}}
	}, noticed: []string{"poison/unreadable"}},
	{name: "poison: what cannot be read is left out", make: func() *broken {
		return listed(func(e driver.PoisonEntry) (driver.PoisonEntry, error) {
			if e.Failure.Class == driver.Unreadable {
				return e, errLeftOut
			}
			return e, nil
		})
	}, noticed: []string{"poison/unreadable"}},
}

var errLeftOut = errors.New("left out")

// listed is a driver that lists its entries in a way of its own.
func listed(how func(e driver.PoisonEntry) (driver.PoisonEntry, error)) *broken {
	return &broken{poison: func(s driver.PoisonStore) driver.PoisonStore {
		return &poisonHooks{PoisonStore: s, list: func(s driver.PoisonStore, ctx context.Context) iter.Seq2[driver.PoisonEntry, error] {
			return func(yield func(driver.PoisonEntry, error) bool) {
				for e, err := range s.List(ctx) {
					if err == nil {
						e, err = how(e)
					}
					if err == errLeftOut {
						continue
					}
					if !yield(e, err) || err != nil {
						return
					}
				}
			}
		}}
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
