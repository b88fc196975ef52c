package router

import "hash/maphash"

// keyTable holds the tasks in flight by key. Each key has a head, the one task that may run, and
// behind it the key's later tasks. It is a hash table linked through the tasks, so it costs no
// allocation. Its size is fixed at twice the in-flight bound, so that its chains stay short.
type keyTable struct {
	slots []*task
	seed  maphash.Seed
}

func newKeyTable(inFlight int) keyTable {
	n := 16
	for n < 2*inFlight && n < 1<<20 {
		n *= 2
	}
	return keyTable{slots: make([]*task, n), seed: maphash.MakeSeed()}
}

func (k *keyTable) slot(t *task) **task { return &k.slots[t.hash&uint64(len(k.slots)-1)] }

// enter puts t behind the earlier tasks of its key. It returns true if there are none: t is the
// head and may run.
func (k *keyTable) enter(t *task) bool {
	t.hash = maphash.String(k.seed, t.key)
	slot := k.slot(t)
	for head := *slot; head != nil; head = head.chain {
		if head.hash == t.hash && head.key == t.key {
			if head.behind == nil {
				head.behind = t
			} else {
				head.last.next = t
			}
			head.last = t
			return false
		}
	}
	t.chain, *slot = *slot, t
	return true
}

// leave removes the head t, and returns the key's next task, which is the head from now on, or nil.
func (k *keyTable) leave(t *task) *task {
	at := k.slot(t)
	for *at != t {
		at = &(*at).chain
	}
	next := t.behind
	if next == nil {
		*at = t.chain
	} else {
		next.behind, next.last = next.next, t.last
		if next.behind == nil {
			next.last = nil
		}
		next.next = nil
		next.chain, *at = t.chain, next
	}
	t.chain, t.behind, t.last = nil, nil, nil
	return next
}

// detach removes the tasks behind the head t, and returns them in order.
func (k *keyTable) detach(t *task) []*task {
	var behind []*task
	for f := t.behind; f != nil; f = f.next {
		behind = append(behind, f)
	}
	for _, f := range behind {
		f.next = nil
	}
	t.behind, t.last = nil, nil
	return behind
}

// has says whether a task of the key is in flight.
func (k *keyTable) has(key string) bool {
	hash := maphash.String(k.seed, key)
	for head := k.slots[hash&uint64(len(k.slots)-1)]; head != nil; head = head.chain {
		if head.hash == hash && head.key == key {
			return true
		}
	}
	return false
}

// list is a queue of tasks, linked through next.
type list struct {
	first, last *task
	n           int
}

func (l *list) push(t *task) {
	t.next = nil
	if l.first == nil {
		l.first = t
	} else {
		l.last.next = t
	}
	l.last = t
	l.n++
}

func (l *list) pushFront(t *task) {
	t.next = l.first
	if l.first == nil {
		l.last = t
	}
	l.first = t
	l.n++
}

// takeOut removes some tasks, and returns them in order.
func (l *list) takeOut(of func(*task) bool) (out []*task) {
	all := *l
	*l = list{}
	for t := all.pop(); t != nil; t = all.pop() {
		if of(t) {
			out = append(out, t)
		} else {
			l.push(t)
		}
	}
	return out
}

func (l *list) pop() *task {
	t := l.first
	if t == nil {
		return nil
	}
	l.first, t.next = t.next, nil
	if l.first == nil {
		l.last = nil
	}
	l.n--
	return t
}
