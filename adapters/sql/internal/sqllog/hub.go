package sqllog

import "sync"

// hub connects the drivers of this process that work on the same tables. A publishing by one driver
// wakes the sources of all, without asking the database.
type hub struct {
	users int // guarded by hubs.mu

	mu      sync.RWMutex
	sources map[*Source]struct{}
	scans   map[*scan]struct{}
}

// hubs are the hubs in use, by the identity of the installation.
var hubs = struct {
	mu   sync.Mutex
	byID map[string]*hub
}{byID: map[string]*hub{}}

func openHub(id string) *hub {
	hubs.mu.Lock()
	defer hubs.mu.Unlock()
	h := hubs.byID[id]
	if h == nil {
		h = &hub{sources: map[*Source]struct{}{}, scans: map[*scan]struct{}{}}
		hubs.byID[id] = h
	}
	h.users++
	return h
}

func closeHub(id string) {
	hubs.mu.Lock()
	defer hubs.mu.Unlock()
	h := hubs.byID[id]
	if h.users--; h.users == 0 {
		delete(hubs.byID, id)
	}
}

func (h *hub) add(s *Source) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sources[s] = struct{}{}
}

func (h *hub) remove(s *Source) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sources, s)
}

// published wakes the sources and scans of a topic.
func (h *hub) published(topic int64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for s := range h.scans {
		if s.topic.id == topic {
			signal(s.wake)
		}
	}
	for s := range h.sources {
		if s.topic.id == topic {
			signal(s.wake)
		}
	}
}

// moved tells the members of a group that lanes or members have come or gone.
func (h *hub) moved(group int64) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for s := range h.sources {
		if s.group == group {
			signal(s.moved)
		}
	}
}

// all wakes every source for everything: nobody knows which notices were missed.
func (h *hub) all() {
	h.mu.RLock()
	defer h.mu.RUnlock()
	for s := range h.sources {
		signal(s.wake)
		signal(s.moved)
	}
	for s := range h.scans {
		signal(s.wake)
	}
}

// signal fills a channel of capacity one. A signal that is there already says it all.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
