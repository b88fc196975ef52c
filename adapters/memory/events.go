package memory

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
	"github.com/millrace-go/millrace/eventstore"
)

// eventLog makes a topic an event store: the streams beside the lanes, which groups read. The lanes
// of such a topic forget nothing.
type eventLog struct {
	topic *topic

	mu        sync.Mutex
	all       []*event // by position, from 1 on; nil: removed
	streams   map[string][]*event
	snapshots map[string]eventstore.Snapshot
	changed   chan struct{} // closed when there are more events
}

type event struct {
	eventstore.Recorded
	stored time.Time
}

// OpenStore implements eventstore.Host. The number of shards is that of all topics.
func (d *busDriver) OpenStore(_ context.Context, name string, _ int) (eventstore.Backend, error) {
	s := d.store
	s.mu.Lock()
	defer s.mu.Unlock()
	old := *s.topics.Load()
	t := old[name]
	if t == nil {
		t = newTopic(name, Config{Capacity: math.MaxInt32, Bytes: math.MaxInt, Retain: math.MaxInt32})
		t.events = &eventLog{topic: t, streams: map[string][]*event{}, snapshots: map[string]eventstore.Snapshot{}, changed: make(chan struct{})}
		topics := maps.Clone(old)
		topics[name] = t
		s.topics.Store(&topics)
	}
	if t.events == nil {
		return nil, fmt.Errorf("%w: the topic exists and is no event store: open the store before anybody publishes or subscribes to its topic", bus.ErrInvalid)
	}
	return &events{d, t.events}, nil
}

// events implements eventstore.Backend for one driver.
type events struct {
	driver *busDriver
	*eventLog
}

func (e *events) fail(op string, err error) error {
	return &bus.Error{Op: op, Broker: "memory", Topic: e.topic.name, Err: err, Definite: true}
}

// check fails if the driver is closed or ctx has ended.
func (e *events) check(ctx context.Context, op string) error {
	select {
	case <-e.driver.closed:
		return e.fail(op, bus.ErrClosed)
	default:
	}
	if err := ctx.Err(); err != nil {
		return e.fail(op, err)
	}
	return nil
}

// Append implements eventstore.Backend.
func (e *events) Append(ctx context.Context, parts []eventstore.Part) ([]eventstore.Appended, error) {
	if err := e.check(ctx, "append"); err != nil {
		return nil, err
	}
	done, err := e.append(parts)
	if err != nil {
		return nil, e.fail("append", err)
	}
	return done, nil
}

// AppendIn implements eventstore.Backend.
func (e *events) AppendIn(context.Context, driver.Execer, eventstore.Part) error {
	return e.fail("append", fmt.Errorf("%w: memory has no transactions", bus.ErrUnsupported))
}

func (l *eventLog) append(parts []eventstore.Part) ([]eventstore.Appended, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	done := make([]eventstore.Appended, len(parts))
	repeated := 0
	var refused error
	for i, p := range parts {
		err := l.fits(p)
		if again, ok := l.repeated(p); err != nil && ok {
			done[i] = again
			repeated++
		} else if err != nil && refused == nil {
			refused = err
		}
	}
	if repeated == len(parts) {
		return done, nil
	}
	if refused == nil && repeated > 0 {
		refused = l.conflict(parts[slices.IndexFunc(done, func(a eventstore.Appended) bool { return a.Repeated })])
	}
	if refused != nil {
		return nil, refused
	}
	for i, p := range parts {
		done[i] = l.add(p)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return done, nil
}

// fits says why a part cannot be appended.
func (l *eventLog) fits(p eventstore.Part) error {
	stream := l.streams[p.Stream]
	if n := len(stream); n > 0 && stream[n-1].Type == eventstore.TypeClosed {
		return fmt.Errorf("stream %q: %w", p.Stream, eventstore.ErrClosed)
	}
	if !p.Expected.Met(l.version(p.Stream)) {
		return l.conflict(p)
	}
	return nil
}

func (l *eventLog) conflict(p eventstore.Part) error {
	return &eventstore.Conflict{Stream: p.Stream, Expected: p.Expected, Actual: l.version(p.Stream)}
}

func (l *eventLog) version(stream string) int64 {
	if s := l.streams[stream]; len(s) > 0 {
		return s[len(s)-1].Version
	}
	return 0
}

// repeated says whether a part is there already, from its expected version on.
func (l *eventLog) repeated(p eventstore.Part) (eventstore.Appended, bool) {
	from := p.Expected.Version() + 1
	s := l.from(p.Stream, from)
	if from < 1 || len(s) < len(p.Events) || s[0].Version != from {
		return eventstore.Appended{}, false
	}
	for i, m := range p.Events {
		if s[i].ID != m.ID {
			return eventstore.Appended{}, false
		}
	}
	last := s[len(p.Events)-1]
	return eventstore.Appended{Version: last.Version, Position: last.Position, Repeated: true}, true
}

// from returns the events of a stream from a version on.
func (l *eventLog) from(stream string, version int64) []*event {
	s := l.streams[stream]
	i, _ := slices.BinarySearchFunc(s, version, func(e *event, v int64) int { return int(e.Version - v) })
	return s[i:]
}

// add appends a part, to the stream and to the topic's lanes.
func (l *eventLog) add(p eventstore.Part) eventstore.Appended {
	version, now := l.version(p.Stream), time.Now()
	msgs := make([]*bus.Message, len(p.Events))
	for i, m := range p.Events {
		stored := *m
		e := &event{eventstore.Recorded{
			Message: &stored, Stream: p.Stream, Version: version + int64(i) + 1, Position: eventstore.Position(len(l.all) + 1),
		}, now}
		l.all = append(l.all, e)
		l.streams[p.Stream] = append(l.streams[p.Stream], e)
		received := *m
		received.Headers = append(slices.Clone(m.Headers),
			bus.Header{Name: eventstore.HeaderVersion, Value: strconv.FormatInt(e.Version, 10)},
			bus.Header{Name: eventstore.HeaderPosition, Value: strconv.FormatInt(int64(e.Position), 10)})
		msgs[i] = &received
	}
	// It has room for whatever comes, and its driver cannot be closed in between: nothing of a part
	// is left out.
	_, _ = l.topic.append(context.Background(), nil, msgs)
	return eventstore.Appended{Version: l.version(p.Stream), Position: eventstore.Position(len(l.all))}
}

// publishEvents appends messages to the streams of their keys.
func (d *busDriver) publishEvents(ctx context.Context, l *eventLog, msgs []*bus.Message) error {
	e := &events{d, l}
	errs := make([]error, len(msgs))
	for i, m := range msgs {
		part, err := eventstore.Published(m)
		if err == nil {
			_, err = e.Append(ctx, []eventstore.Part{part})
		}
		if err != nil {
			errs[i] = fail("publish", l.topic.name, err)
		}
	}
	if bus.PerMessage(errs) == nil {
		return nil
	}
	return &bus.PublishError{Errs: errs}
}

// Read implements eventstore.Backend.
func (e *events) Read(ctx context.Context, stream string, from int64, limit int) ([]eventstore.Recorded, error) {
	if err := e.check(ctx, "read"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.from(stream, from)
	return copies(slices.Values(s[:min(len(s), limit)])), nil
}

// Back implements eventstore.Backend.
func (e *events) Back(ctx context.Context, stream string, before int64, limit int) ([]eventstore.Recorded, error) {
	if err := e.check(ctx, "read"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.streams[stream]
	if before > 0 {
		s = s[:len(s)-len(e.from(stream, before))]
	}
	s = slices.Clone(s[max(len(s)-limit, 0):])
	slices.Reverse(s)
	return copies(slices.Values(s)), nil
}

// copies returns events that the caller may keep, with messages of its own.
func copies(events func(yield func(*event) bool)) []eventstore.Recorded {
	var all []eventstore.Recorded
	for e := range events {
		if e != nil {
			r, m := e.Recorded, *e.Message
			r.Message = &m
			all = append(all, r)
		}
	}
	return all
}

// Scan implements eventstore.Backend.
func (e *events) Scan(after eventstore.Position) eventstore.Scan {
	return &scan{e, max(int(after), 0)}
}

// scan implements eventstore.Scan.
type scan struct {
	events *events
	after  int
}

// scanPage is how many events are returned at once.
const scanPage = 1000

// Next implements eventstore.Scan.
func (s *scan) Next(ctx context.Context) ([]eventstore.Recorded, error) {
	if err := s.events.check(ctx, "read"); err != nil {
		return nil, err
	}
	s.events.mu.Lock()
	defer s.events.mu.Unlock()
	for s.after < len(s.events.all) {
		to := min(s.after+scanPage, len(s.events.all))
		found := copies(slices.Values(s.events.all[s.after:to]))
		if s.after = to; len(found) > 0 {
			return found, nil
		}
	}
	return nil, nil
}

// Wait implements eventstore.Scan.
func (s *scan) Wait(ctx context.Context) error {
	s.events.mu.Lock()
	changed, there := s.events.changed, s.after < len(s.events.all)
	s.events.mu.Unlock()
	if there {
		return nil
	}
	select {
	case <-changed:
		return nil
	case <-ctx.Done():
		return s.events.fail("read", ctx.Err())
	case <-s.events.driver.closed:
		return s.events.fail("read", bus.ErrClosed)
	}
}

// Close implements eventstore.Scan.
func (s *scan) Close() {}

// Head implements eventstore.Backend.
func (e *events) Head(ctx context.Context) (eventstore.Position, error) {
	if err := e.check(ctx, "head"); err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return eventstore.Position(len(e.all)), nil
}

// Last implements eventstore.Backend.
func (e *events) Last(ctx context.Context) (eventstore.Position, error) { return e.Head(ctx) }

// Before implements eventstore.Backend.
func (e *events) Before(ctx context.Context, t time.Time) (eventstore.Position, error) {
	if err := e.check(ctx, "read"); err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.IndexFunc(e.all, func(e *event) bool { return e != nil && !e.stored.Before(t) })
	if i < 0 {
		i = len(e.all)
	}
	return eventstore.Position(i), nil
}

// Streams implements eventstore.Backend.
func (e *events) Streams(ctx context.Context, prefix, after string, limit int) ([]eventstore.StreamInfo, error) {
	if err := e.check(ctx, "list streams"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var infos []eventstore.StreamInfo
	for _, name := range slices.Sorted(maps.Keys(e.streams)) {
		if name <= after || !strings.HasPrefix(name, prefix) {
			continue
		}
		s := e.streams[name]
		first, last := s[0], s[len(s)-1]
		infos = append(infos, eventstore.StreamInfo{
			Name: name, First: first.Version, Last: last.Version, Closed: last.Type == eventstore.TypeClosed, Changed: last.stored,
		})
		if len(infos) == limit {
			break
		}
	}
	return infos, nil
}

// Truncate implements eventstore.Backend.
func (e *events) Truncate(ctx context.Context, stream string, before int64) (first int64, err error) {
	if err := e.check(ctx, "truncate"); err != nil {
		return 0, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.streams[stream]
	if len(s) == 0 {
		return 0, e.fail("truncate", fmt.Errorf("stream %q has no events: %w", stream, bus.ErrNotFound))
	}
	unfinished := e.topic.unfinished(stream)
	for len(s) > 1 && s[0].Version < before && s[0].Position < unfinished {
		e.all[s[0].Position-1] = nil
		s = s[1:]
	}
	e.streams[stream] = slices.Clone(s)
	return s[0].Version, nil
}

// unfinished returns the position of the first event, in the lane of a key, that a group has not
// finished.
func (t *topic) unfinished(key string) eventstore.Position {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.admit()
	lane := t.laneOf(&bus.Message{Key: key})
	l := &t.logs[lane]
	limit := l.next
	for _, g := range t.groups {
		limit = min(limit, g.lanes[lane].window.Position())
	}
	if limit == l.next {
		return math.MaxInt64
	}
	p, _ := strconv.ParseInt(l.at(limit).msg.Headers.Get(eventstore.HeaderPosition), 10, 64)
	return eventstore.Position(p)
}

// Snapshot implements eventstore.Backend.
func (e *events) Snapshot(ctx context.Context, stream string) (eventstore.Snapshot, error) {
	if err := e.check(ctx, "read the snapshot"); err != nil {
		return eventstore.Snapshot{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.snapshots[stream], nil
}

// SaveSnapshot implements eventstore.Backend.
func (e *events) SaveSnapshot(ctx context.Context, stream string, s eventstore.Snapshot) error {
	if err := e.check(ctx, "save the snapshot"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if old := e.snapshots[stream]; old.Schema == s.Schema && old.Version > s.Version {
		return nil
	}
	s.State = slices.Clone(s.State)
	e.snapshots[stream] = s
	return nil
}
