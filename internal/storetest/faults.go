package storetest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/eventstore"
)

// LostAnswer loses the answer to the commit of an append. With a version, the driver finds out by
// itself that the events are there; without one the caller is told that it is not known, and
// repeating with the version says that they are there. lose has the connection cut instead of the
// next answer to a commit of the event with the id.
func LostAnswer(t *testing.T, b *bus.Bus, lose func(id string)) {
	ctx := bounded(t)
	s, err := eventstore.Open(ctx, b, topic())
	if err != nil {
		t.Fatal(err)
	}
	lose("lost-2")
	done, err := s.Append(ctx, "a", eventstore.New, messages("lost-1", "lost-2")...)
	if err != nil || done.Version != 2 || done.Repeated || done.Position == 0 {
		t.Errorf("appended %+v, %v", done, err)
	}
	lose("lost-4")
	both := []eventstore.Write{eventstore.To("a", eventstore.At(2), messages("lost-3")...), eventstore.To("b", eventstore.New, messages("lost-4")...)}
	if all, err := s.AppendAll(ctx, both...); err != nil || all[0].Version != 3 || all[1].Version != 1 {
		t.Errorf("appended %+v, %v", all, err)
	}
	lose("lost-5")
	_, err = s.Append(ctx, "a", eventstore.Any, messages("lost-5")...)
	if err == nil || bus.IsDefinite(err) || !bus.IsRetryable(err) {
		t.Fatalf("the answer was lost: %v", err)
	}
	done, err = s.Append(ctx, "a", eventstore.At(3), messages("lost-5")...)
	if err != nil || done.Version != 4 || !done.Repeated {
		t.Errorf("repeated: %+v, %v", done, err)
	}
	same(t, "all", brief(collect(t, s.All(ctx, 0))), "a@1 a@2 a@3 b@1 a@4")
}

// killedVariable has the test's own program be a writer: the store's URL and topic.
const killedVariable = "MILLRACE_STORETEST_WRITER"

// Writer is the process that KilledWriters kills, if the environment asks for it; it does not
// return then. A TestMain calls it.
func Writer() {
	url, name, ok := strings.Cut(os.Getenv(killedVariable), " ")
	if !ok {
		return
	}
	fmt.Println("error:", write(url, name))
	os.Exit(1)
}

// write appends for ever, and prints the acknowledged appends.
func write(url, name string) error {
	ctx := context.Background()
	b, err := bus.Open(ctx, url)
	if err != nil {
		return err
	}
	s, err := eventstore.Open(ctx, b, name)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	failed := make(chan error)
	for w := range 8 {
		go func() {
			for i := 0; ; i++ {
				m := &bus.Message{ID: bus.NewID(), Type: "test", Payload: []byte("{}")}
				if _, err := s.Append(ctx, fmt.Sprintf("s-%d", (w+i)%10), eventstore.Any, m); err != nil {
					failed <- err
					return
				}
				mu.Lock()
				fmt.Println(m.ID)
				mu.Unlock()
			}
		}()
	}
	return <-failed
}

// KilledWriters has four processes append, and kills one of them again and again, with SIGKILL.
// Every acknowledged event is there, and versions are dense.
func KilledWriters(t *testing.T, url string, b *bus.Bus) {
	name, ctx := topic(), bounded(t)
	s, err := eventstore.Open(ctx, b, name)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	acknowledged := map[string]bool{}
	var readers sync.WaitGroup
	start := func() *exec.Cmd {
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), killedVariable+"="+url+" "+name)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		readers.Go(func() {
			for lines := bufio.NewScanner(out); lines.Scan(); {
				if strings.HasPrefix(lines.Text(), "error:") {
					t.Error(lines.Text())
				} else if len(lines.Text()) == 36 { // a line may be cut off
					mu.Lock()
					acknowledged[lines.Text()] = true
					mu.Unlock()
				}
			}
		})
		return cmd
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	writers := []*exec.Cmd{start(), start(), start(), start()}
	kills := 0
	for tick := time.NewTicker(10 * time.Millisecond); kills < 12 && ctx.Err() == nil; <-tick.C {
		if count() < 150*(kills+1) {
			continue
		}
		i := kills % len(writers)
		_ = writers[i].Process.Kill()
		if kills++; kills <= 8 {
			_ = writers[i].Wait()
			writers[i] = start()
		}
	}
	readers.Wait()
	for _, w := range writers {
		_ = w.Wait()
	}
	// All ends before a transaction that is open, and the server may not have noticed yet that the
	// last writers are dead. Follow waits for that.
	for e, err := range s.Follow(ctx, 0) {
		if err != nil {
			t.Fatalf("%d events were acknowledged, and do not come: %v", len(acknowledged), err)
		}
		if delete(acknowledged, e.ID); len(acknowledged) == 0 {
			break
		}
	}
	all := collect(t, s.All(ctx, 0))
	dense(t, all)
	t.Logf("%d events, %d processes killed", len(all), kills)
}
