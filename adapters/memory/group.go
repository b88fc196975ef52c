package memory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/window"
)

// group is a group's state on one topic, guarded by the topic's lock.
type group struct {
	lanes   [lanes]groupLane
	members []*source // in the order in which they came
	epoch   uint64
	moving  bool // a goroutine is spreading the lanes
}

type groupLane struct {
	window *window.Window
	read   int64   // the next position to deliver
	owner  *source // nil: no owner yet, or the lane is on the way
	epoch  uint64
	parked parkedMessages
}

// revokeTimeout bounds the time in which a live member must hand a lane over.
const revokeTimeout = 30 * time.Second

// join makes src a member; lanes come to it at once, or when others have handed them over.
func (t *topic) join(src *source, s bus.Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.admit()
	g := t.groups[s.Group]
	if g == nil {
		g = &group{}
		for i := range g.lanes {
			l := &t.logs[i]
			start := l.base
			if s.Start == bus.Latest {
				start = l.next
			} else if at, ok := s.Start.Time(); ok {
				start = l.since(at)
			}
			g.lanes[i] = groupLane{window: window.New(start), read: start}
		}
		t.groups[s.Group] = g
	}
	src.group = g
	g.members = append(g.members, src)
	t.spread(g)
}

// leave takes src out, and gives its unsettled messages to the others.
func (t *topic) leave(src *source) {
	g := src.group
	if i := slices.Index(g.members, src); i >= 0 {
		g.members = slices.Delete(g.members, i, i+1)
	}
	for i := range g.lanes {
		if g.lanes[i].owner == src {
			g.lanes[i].free()
		}
	}
	t.spread(g)
}

// free ends an ownership: unsettled messages will be read again.
func (l *groupLane) free() {
	// Encoding without a limit keeps all finished messages beyond the position.
	l.window, _ = window.Restore(l.window.Position(), l.window.Encode(nil, 1<<30))
	l.read = l.window.Position()
	l.owner = nil
}

// spread moves lanes until each member has its share. Called with the lock held.
func (t *topic) spread(g *group) {
	if g.moving {
		return // it looks again before it ends
	}
	give, take := g.plan()
	if len(take) == 0 && len(give) == 0 {
		return
	}
	if len(give) == 0 { // no member has to give a lane, so there is nothing to wait for
		t.assign(g, take)
		return
	}
	g.moving = true
	go func() {
		for src, ids := range give {
			ctx, cancel := context.WithTimeout(context.Background(), revokeTimeout)
			src.observer.Revoking(ctx, ids)
			cancel()
			t.mu.Lock()
			for _, id := range ids {
				if l := &g.lanes[id.ID]; l.owner == src && l.epoch == id.Epoch {
					l.free()
				}
			}
			t.mu.Unlock()
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		g.moving = false
		t.spread(g)
	}()
}

// plan says which lanes members must give, and which members take free ones.
func (g *group) plan() (give, take map[*source][]bus.Lane) {
	give, take = map[*source][]bus.Lane{}, map[*source][]bus.Lane{}
	if len(g.members) == 0 {
		return nil, nil
	}
	for i := range g.lanes {
		l := &g.lanes[i]
		due := g.members[i%len(g.members)]
		switch {
		case l.owner == due:
		case l.owner == nil:
			g.epoch++
			take[due] = append(take[due], bus.Lane{ID: int32(i), Epoch: g.epoch})
		default:
			give[l.owner] = append(give[l.owner], bus.Lane{ID: int32(i), Epoch: l.epoch})
		}
	}
	return give, take
}

// assign gives free lanes to members. The observers do not block, and do not call back.
func (t *topic) assign(g *group, take map[*source][]bus.Lane) {
	for src, ids := range take {
		src.observer.Assigned(ids)
		for _, id := range ids {
			l := &g.lanes[id.ID]
			l.owner, l.epoch = src, id.Epoch
			tell(src.observer, l.parked.all(id.Epoch))
		}
		src.wake.Broadcast()
	}
}

// lag counts the messages that a group has not finished.
func (t *topic) lag(name string) (lag bus.Lag, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.admit()
	g := t.groups[name]
	if g == nil {
		return lag, fail("lag", t.name, fmt.Errorf("group %q: %w", name, bus.ErrNotFound))
	}
	for i := range g.lanes {
		l, log := &g.lanes[i], &t.logs[i]
		lag.Messages += log.next - l.read + int64(l.window.Open())
		first := max(l.window.Position(), log.base)
		if first >= log.next {
			continue
		}
		if at := log.at(first).msg.Time; lag.Oldest.IsZero() || at.Before(lag.Oldest) {
			lag.Oldest = at
		}
	}
	return lag, nil
}
