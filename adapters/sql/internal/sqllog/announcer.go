package sqllog

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/internal/backoff"
)

// announcer tells other processes through the database, if it can, that a topic has messages or that a group changes.
// The first word goes at once, further ones together after announcePause: each announcement is a commit, which
// PostgreSQL serialises with all others of its kind. It happens after the publishing commit, never in it.
type announcer struct {
	driver *Driver
	to     Notifier // nil: there is no way

	mu      sync.Mutex
	pending map[string]struct{}
	running bool
	ended   sync.WaitGroup
}

const announcePause = 10 * time.Millisecond

func (a *announcer) init(d *Driver) {
	a.driver = d
	a.to, _ = d.store.(Notifier)
	a.pending = map[string]struct{}{}
}

// processID names this process in announcements.
var processID = bus.NewID()

func (a *announcer) published(topic int64) { a.say("topic", topic) }
func (a *announcer) moved(group int64)     { a.say("group", group) }

func (a *announcer) say(what string, id int64) {
	if a.to == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pending[processID+" "+what+" "+strconv.FormatInt(id, 10)] = struct{}{}
	if !a.running {
		a.running = true
		a.ended.Go(a.run)
	}
}

func (a *announcer) run() {
	for {
		a.mu.Lock()
		if len(a.pending) == 0 {
			a.running = false
			a.mu.Unlock()
			return
		}
		texts := make([]string, 0, len(a.pending))
		for t := range a.pending {
			texts = append(texts, t)
		}
		clear(a.pending)
		a.mu.Unlock()
		ctx, cancel := context.WithTimeout(a.driver.io, callTimeout)
		// only a hint: a process that misses it looks by itself before long
		_ = a.to.Notify(ctx, texts)
		cancel()
		sleep(announcePause, a.driver.closing, nil)
	}
}

// wait waits until everything has been said.
func (a *announcer) wait() { a.ended.Wait() }

// listen begins to hear other processes, once, when the driver has its first source.
func (d *Driver) listen() {
	if d.announcer.to == nil || d.listening {
		return
	}
	d.listening = true
	d.work.Go(func() {
		for b := (backoff.Backoff{}); ; {
			err := d.announcer.to.Listen(d.io, func() {
				b = backoff.Backoff{}
				d.report(listening, nil)
				d.hub.all() // something may have been said before
			}, d.heard)
			d.report(listening, err)
			if d.io.Err() != nil || !sleep(b.Next(), d.closing, nil) {
				return
			}
		}
	})
}

// heard takes an announcement. It ignores texts that are not ours.
func (d *Driver) heard(text string) {
	words := strings.Fields(text)
	if len(words) != 3 || words[0] == processID {
		return
	}
	id, err := strconv.ParseInt(words[2], 10, 64)
	if err != nil {
		return
	}
	switch words[1] {
	case "topic":
		d.hub.published(id)
	case "group":
		d.hub.moved(id)
	}
}
