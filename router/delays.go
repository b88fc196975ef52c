package router

import "container/heap"

// heldTasks are the tasks that wait for their next try, the earliest due first.
type heldTasks []*task

func (h heldTasks) Len() int           { return len(h) }
func (h heldTasks) Less(i, j int) bool { return h[i].due.Before(h[j].due) }
func (h heldTasks) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *heldTasks) Push(x any) { *h = append(*h, x.(*task)) }

// Pop implements heap.Interface.
func (h *heldTasks) Pop() any {
	old := *h
	t := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return t
}

var _ heap.Interface = (*heldTasks)(nil)
