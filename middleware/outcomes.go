package middleware

import "github.com/millrace-go/millrace/bus"

// eachFailure gives each message's error of a call to f, and returns the call's error with what f made of them.
func eachFailure(c bus.Call, err error, f func(m *bus.Message, err error) error) error {
	if err == nil {
		return nil
	}
	errs := bus.Outcomes(err, c.Len())
	i := 0
	for m := range c.Messages() {
		if errs[i] != nil {
			errs[i] = f(m, errs[i])
		}
		i++
	}
	if len(errs) == 1 { // a single message, or a batch of one: the error is that of all
		return errs[0]
	}
	return bus.Each(errs)
}
