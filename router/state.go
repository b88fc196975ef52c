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
	taskFree:       {taskReady, taskBlocked, taskHeld, taskParking, taskCancelling, taskSettling}, // admitTask
	taskBlocked:    {taskReady, taskParking, taskKept, taskFree},                                  // leaveKey; parkFollowers
	taskReady:      {taskRunning, taskEnded, taskFree},                                            // take; giveBack
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
	t.state = to
}
