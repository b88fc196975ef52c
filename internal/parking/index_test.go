package parking

import (
	"math/rand/v2"
	"testing"

	"github.com/millrace-go/millrace/bus"
)

// in returns an index that has a message at position 7 in this state, at version 50 if it has one.
func in(s State) *Index {
	x := &Index{}
	if s != Unknown {
		x.Reserve(bus.Token{Parked: true, Position: 7})
	}
	if s > Writing {
		x.Stored(7, 50)
	}
	switch s {
	case Lost:
		x.Lose()
	case Settled:
		x.Settle(bus.Token{Parked: true, Position: 7})
	}
	return x
}

func (s State) String() string {
	return [...]string{"unknown", "writing", "stored", "lost", "settled"}[s]
}

// TestIndex does each thing in each state.
func TestIndex(t *testing.T) {
	seven := bus.Token{Parked: true, Position: 7}
	const no, yes = false, true
	type after struct {
		state   State
		version int64
		said    bool
	}
	for _, c := range []struct {
		name string
		do   func(x *Index) bool
		// in the order of the states
		want [5]after
	}{
		{
			"reserve", func(x *Index) bool { return x.Reserve(seven) == 7 },
			[...]after{{Writing, 0, yes}, {Writing, 0, yes}, {Stored, 50, yes}, {Lost, 0, yes}, {Writing, 0, yes}},
		},
		{
			"stored: is it left?", func(x *Index) bool { return x.Stored(7, 60) },
			[...]after{{Settled, 60, yes}, {Stored, 60, no}, {Stored, 60, no}, {Stored, 60, no}, {Settled, 50, no}},
		},
		{
			"stored, an older record", func(x *Index) bool { return x.Stored(7, 40) },
			[...]after{{Settled, 40, yes}, {Stored, 40, no}, {Stored, 50, no}, {Stored, 40, no}, {Settled, 50, no}},
		},
		{
			"settle: is a record left?", func(x *Index) bool { _, left := x.Settle(seven); return left },
			[...]after{{Unknown, 0, no}, {Settled, 0, yes}, {Settled, 50, yes}, {Settled, 0, yes}, {Settled, 50, no}},
		},
		{
			"forget", func(x *Index) bool { x.Forget(7); return true },
			[...]after{{Unknown, 0, yes}, {Unknown, 0, yes}, {Unknown, 0, yes}, {Unknown, 0, yes}, {Unknown, 0, yes}},
		},
		{
			"found: is it known?", func(x *Index) bool { return x.Found(7, 60) },
			[...]after{{Unknown, 0, no}, {Writing, 0, yes}, {Stored, 60, yes}, {Stored, 60, yes}, {Settled, 50, no}},
		},
		{
			"found, an older record", func(x *Index) bool { return x.Found(7, 40) },
			[...]after{{Unknown, 0, no}, {Writing, 0, yes}, {Stored, 50, yes}, {Stored, 40, yes}, {Settled, 50, no}},
		},
		{
			"adopt", func(x *Index) bool { return x.Adopt(7, 60) },
			[...]after{{Stored, 60, yes}, {Stored, 60, yes}, {Stored, 60, yes}, {Stored, 60, yes}, {Settled, 50, no}},
		},
		{
			"replace", func(x *Index) bool { _, ok := x.Apply(Command{Replace, 7}, true); return ok },
			[...]after{{Unknown, 0, no}, {Writing, 0, yes}, {Stored, 50, yes}, {Lost, 0, yes}, {Settled, 50, no}},
		},
		{
			"replace another message", func(x *Index) bool { _, ok := x.Apply(Command{Replace, 7}, false); return ok },
			[...]after{{Unknown, 0, no}, {Writing, 0, no}, {Stored, 50, no}, {Lost, 0, no}, {Settled, 50, no}},
		},
		{
			"withdraw", func(x *Index) bool { _, ok := x.Apply(Command{Withdraw, 7}, true); return ok },
			[...]after{{Unknown, 0, no}, {Unknown, 0, yes}, {Unknown, 0, yes}, {Unknown, 0, yes}, {Settled, 50, no}},
		},
		{
			"withdraw another message", func(x *Index) bool { _, ok := x.Apply(Command{Withdraw, 7}, false); return ok },
			[...]after{{Unknown, 0, no}, {Writing, 0, no}, {Stored, 50, no}, {Lost, 0, no}, {Settled, 50, no}},
		},
		{
			"lose", func(x *Index) bool { x.Lose(); return true },
			[...]after{{Unknown, 0, yes}, {Writing, 0, yes}, {Lost, 0, yes}, {Lost, 0, yes}, {Settled, 50, yes}},
		},
		{
			"prune", func(x *Index) bool { x.Prune(); return true },
			[...]after{{Unknown, 0, yes}, {Writing, 0, yes}, {Stored, 50, yes}, {Unknown, 0, yes}, {Settled, 50, yes}},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			for s, want := range c.want {
				x := in(State(s))
				said := c.do(x)
				if state, version := x.At(7); (after{state, version, said}) != want {
					t.Errorf("%v: %v, version %d, said %v; want %v, %d, %v", State(s), state, version, said, want.state, want.version, want.said)
				}
			}
		})
	}
}

func TestIndexOfReservedPlaces(t *testing.T) {
	origin := bus.Token{Position: 3}
	for _, c := range []struct {
		name  string
		do    func(x *Index)
		again bool  // the next try has the same place
		left  bool  // settling it at its origin leaves a record
		state State // then
	}{
		{"being written", func(*Index) {}, true, false, Unknown},
		{"failed for good", func(x *Index) { x.Reserve(origin) }, true, false, Unknown},
		{"failed, perhaps", func(x *Index) { x.Doubt(origin) }, true, true, Settled},
		{"failed, perhaps, and then for good", func(x *Index) { x.Doubt(origin); x.Reserve(origin) }, true, true, Settled},
		{"parked", func(x *Index) { x.Stored(x.Reserve(origin), 50); x.Moved(origin) }, false, false, Stored},
		{"parked after a doubt", func(x *Index) { x.Doubt(origin); x.Stored(x.Reserve(origin), 50); x.Moved(origin) }, false, false, Stored},
		{"settled", func(x *Index) { x.Settle(origin) }, false, false, Unknown},
		{"settled, in doubt", func(x *Index) { x.Doubt(origin); x.Settle(origin) }, false, false, Settled},
		{"settled twice", func(x *Index) { x.Settle(origin); x.Settle(origin) }, false, false, Unknown},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := &Index{}
			place := x.Reserve(origin)
			c.do(x)
			if _, left := x.Settle(origin); left != c.left {
				t.Errorf("a record is left: %v", left)
			}
			if s, _ := x.At(place); s != c.state {
				t.Errorf("it is %v, want %v", s, c.state)
			}
			x = &Index{}
			place = x.Reserve(origin)
			c.do(x)
			if again := x.Reserve(origin) == place; again != c.again {
				t.Errorf("the next try has the same place: %v", again)
			}
			if other := x.Reserve(bus.Token{Position: 4}); other <= place {
				t.Errorf("position %d comes after %d", other, place)
			}
		})
	}
}

func TestIndexOfCommands(t *testing.T) {
	x := &Index{}
	x.Seen(int64(1) << 62) // by an owner with a clock that is ahead
	position, ok := x.Apply(Command{Kind: New}, false)
	if s, _ := x.At(position); !ok || position != 1<<62+1 || s != Writing {
		t.Errorf("position %d, %v, is %v", position, ok, s)
	}
	if again, ok := x.Apply(Command{Replace, position}, true); !ok || again != position { // the next try
		t.Errorf("position %d, %v, the second time", again, ok)
	}
}

// TestIndexLosesNothing parks, settles, withdraws and reads at random, as a driver does, while
// answers get lost. In the end the broker has the parked messages; nothing else is left, and none
// is missing.
func TestIndexLosesNothing(t *testing.T) {
	for seed := range uint64(500) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		x := &Index{}
		broker := map[int64]int64{} // the newest version at each position
		parked := map[int64]bool{}  // the router's
		var removing []int64
		version, read := int64(0), int64(0)
		var log []int64 // positions, by version
		write := func(position int64) {
			version++
			broker[position] = version
			log = append(log, position)
		}
		remove := func() {
			for _, position := range removing {
				delete(broker, position)
				x.Forget(position)
			}
			removing = nil
		}
		pick := func() (bus.Token, bool) {
			for p := range parked {
				return bus.Token{Parked: true, Position: p}, true
			}
			return bus.Token{}, false
		}
		origins := map[int64]bool{}
		for step := range int64(200) {
			switch rnd.IntN(6) {
			case 0: // park a new one
				origins[step] = true
			case 1: // try the messages to park
				for o := range origins {
					at := bus.Token{Position: o}
					place := x.Reserve(at)
					arrives, answered := rnd.IntN(4) > 0, rnd.IntN(4) > 0
					if arrives {
						write(place)
					}
					switch {
					case arrives && answered:
						if x.Stored(place, version) {
							t.Fatalf("seed %d: nobody has settled %d", seed, place)
						}
						x.Moved(at)
						parked[place] = true
						delete(origins, o)
					case !answered:
						x.Doubt(at)
					}
				}
			case 2: // handle one that cannot be parked
				for o := range origins {
					if place, left := x.Settle(bus.Token{Position: o}); left {
						removing = append(removing, place)
					}
					delete(origins, o)
					break
				}
			case 3: // handle a parked one, perhaps while it is parked again
				if token, ok := pick(); ok {
					writing := rnd.IntN(2) == 0
					if writing {
						x.Reserve(token)
					}
					if place, left := x.Settle(token); left {
						removing = append(removing, place)
					}
					delete(parked, token.Position)
					if rnd.IntN(2) == 0 {
						remove()
					}
					if !writing {
						break
					}
					write(token.Position)
					if x.Stored(token.Position, version) {
						removing = append(removing, token.Position)
					}
				}
			case 4: // the listener reads
				for ; read < version; read++ {
					if position := log[read]; !x.Found(position, read+1) && broker[position] != 0 && x.Adopt(position, read+1) {
						t.Fatalf("seed %d: adopted %d, which is this owner's own", seed, position)
					}
				}
			case 5: // the remover is at work
				remove()
			}
		}
		for o := range origins {
			if place, left := x.Settle(bus.Token{Position: o}); left {
				removing = append(removing, place)
			}
		}
		for _, position := range removing {
			delete(broker, position)
		}
		for position := range parked {
			if s, v := x.At(position); s != Stored || v != broker[position] || v == 0 {
				t.Fatalf("seed %d: %d is %v, version %d; the broker has %d", seed, position, s, v, broker[position])
			}
		}
		if len(broker) != len(parked) {
			t.Fatalf("seed %d: %d messages are parked, and the broker has %d", seed, len(parked), len(broker))
		}
	}
}
