package conformance_test

import (
	"context"
	"errors"

	"github.com/millrace-go/millrace/bus"
	"github.com/millrace-go/millrace/bus/driver"
)

// lies is a driver that changes the lag.
func lies(change func(lag *bus.Lag)) *broken {
	return &broken{lag: func(l driver.Lagger, ctx context.Context, topic, group string) (bus.Lag, error) {
		lag, err := l.Lag(ctx, topic, group)
		change(&lag)
		return lag, err
	}}
}

// truthDefects are drivers that do not tell the truth about themselves.
var truthDefects = []defect{
	{name: "conditions: the end of an outage is not told", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			o.(driver.ConditionObserver).Condition(driver.Disconnected, errors.New("no route to host"))
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"truth/states", "truth/conditions"}},
	{name: "conditions: a lane that works is said not to", make: func() *broken {
		return &broken{subscribe: func(d driver.Driver, ctx context.Context, s bus.Subscription, o bus.LaneObserver) (bus.Source, error) {
			o.(driver.ConditionObserver).Condition("lane 3 cannot be consumed", errors.New("RESOURCE_LOCKED"))
			return d.Subscribe(ctx, s, o)
		}}
	}, noticed: []string{"truth/states", "truth/conditions"}},
	{name: "parked messages are due at once", make: dueless, noticed: []string{"truth/counts"}},
	{name: "lag: one message is not counted", make: func() *broken {
		return lies(func(lag *bus.Lag) { lag.Messages-- })
	}, noticed: []string{"truth/lag"}},
	{name: "lag: the oldest message has no age", make: func() *broken {
		return lies(func(lag *bus.Lag) { lag.Oldest = lag.Oldest.AddDate(-1, 0, 0) })
	}, noticed: []string{"truth/lag"}},
}
