package bus

import (
	"errors"
	"fmt"
)

// outputsError is the error of a batch when some outputs were not published.
type outputsError struct {
	causes map[string]error // by the id of the message that led to them
}

func (e *outputsError) add(run []emitted, err error) {
	var failed *PublishError
	aligned := errors.As(err, &failed) && len(failed.Errs) == len(run)
	for i := range run {
		each := err
		if aligned {
			each = failed.Errs[i]
		}
		if cause := run[i].cause; each != nil && e.causes[cause] == nil {
			e.causes[cause] = fmt.Errorf("emit: %w", each)
		}
	}
}

// of returns why outputs of a message were not published; nil if all were.
func (e *outputsError) of(m *Message) error { return e.causes[m.ID] }

func (e *outputsError) Error() string {
	for _, err := range e.causes {
		if len(e.causes) == 1 {
			return err.Error()
		}
		return fmt.Sprintf("outputs of %d messages were not published, of one because: %v", len(e.causes), err)
	}
	return "outputs were not published"
}

// Unwrap returns the errors.
func (e *outputsError) Unwrap() []error {
	errs := make([]error, 0, len(e.causes))
	for _, err := range e.causes {
		errs = append(errs, err)
	}
	return errs
}
