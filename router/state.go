package router

// taskState says where a task is. [consumer.move] alone writes it, with the consumer's lock held.
type taskState int8

const (
	taskFree       taskState = iota // its message is not in flight: it is in the free list, or just taken from there
	taskBlocked                     // behind an earlier task of its key
	taskReady                       // in the ready list, or in the batch queue of its handler
	taskRunning                     // in a worker's hands
	taskEnded                       // its call has ended; it goes on when the parker lets go of it
	taskHeld                        // in this process until it is due
	taskParking                     // on its way to the broker
	taskKept                        // parked in this process, because the broker refuses it
	taskPoisoning                   // on its way into the poison queue
	taskCancelling                  // a cancellation, with the canceller
	taskSettling                    // done with, and with the settler
	taskStates
)

func (s taskState) String() string {
	return [taskStates]string{"free", "blocked", "ready", "running", "ended", "held", "parking", "kept", "poisoning", "cancelling", "settling"}[s]
}

// storing says what the parker does with a task.
type storing int8

const (
	storeNone   storing = iota // nothing: the parker does not have the task
	storeQueued                // the task is in the parker's queue
	storeCalled                // the driver stores it now
	storeStuck                 // the driver could not store it, and will be asked again
)

// marked says whether the parker stores a task that is in another place too, and so ahead of its followers.
func (t *task) marked() bool { return t.storing != storeNone && t.state != taskParking }

// moves has the states that a task may move to from each state. Tests hold move to it.
var moves = [taskStates][]taskState{
	taskFree:       {taskReady, taskBlocked, taskHeld, taskParking, taskCancelling, taskSettling, taskPoisoning}, // admitTask, waitOn
	taskBlocked:    {taskReady, taskParking, taskKept, taskFree},                                                 // leaveKey; parkFollowers
	taskReady:      {taskRunning, taskEnded, taskParking, taskFree},                                              // take; parkTried
	taskRunning:    {taskReady, taskEnded, taskHeld, taskParking, taskKept, taskPoisoning, taskSettling, taskFree},
	taskEnded:      {taskHeld, taskParking, taskKept, taskPoisoning, taskSettling, taskFree},
	taskHeld:       {taskReady, taskBlocked, taskEnded, taskParking, taskKept, taskSettling, taskFree},
	taskParking:    {taskKept, taskPoisoning, taskSettling, taskFree},
	taskKept:       {taskReady, taskBlocked, taskKept, taskSettling, taskFree},
	taskPoisoning:  {taskEnded, taskHeld, taskParking, taskSettling, taskFree},
	taskCancelling: {taskSettling, taskFree},
	taskSettling:   {taskPoisoning, taskFree},
}

// observeMove is set by tests.
var observeMove func(t *task, to taskState)

// move moves a task to another state. Called with the lock held.
func (c *consumer) move(t *task, to taskState) {
	if observeMove != nil {
		observeMove(t, to)
	}
	from, was := t.state, t.busy()
	t.state = to
	t.countBusy(was)
	switch taskFree {
	case from:
		c.countTask(t, 1)
	case to:
		c.countTask(t, -1)
	}
}

// setStoring notes what the parker does with a task.
func (t *task) setStoring(s storing) {
	was := t.busy()
	t.storing = s
	t.countBusy(was)
}

const busyStates = 1<<taskRunning | 1<<taskEnded | 1<<taskParking | 1<<taskPoisoning | 1<<taskCancelling | 1<<taskSettling

// busy says whether a handover of the task's lane waits for it. It lets go of tasks that are stuck.
func (t *task) busy() bool {
	return busyStates&(1<<t.state) != 0 && !(t.state == taskParking && t.storing == storeStuck)
}

// countBusy counts a task that was, or was not, busy before it changed.
func (t *task) countBusy(was bool) {
	if is := t.busy(); is != was {
		t.lane.countBusy(is)
	}
}

// countTask counts a task that comes into flight (1), or is out of it (-1).
func (c *consumer) countTask(t *task, n int) {
	if t.beside {
		c.flight.fetchedMessages += n
		c.flight.fetchedBytes += n * t.size
	} else {
		c.flight.messages += n
		c.flight.bytes += n * t.size
	}
}
