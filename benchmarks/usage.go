package main

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// result is the cost of a round.
type result struct {
	rate           float64 // messages a second
	cpu            time.Duration
	allocs, bytes  float64 // a message
	resident       int64   // bytes, at the end
	p50, p99, p999 time.Duration
}

// usage is the process's consumption when a measurement began.
type usage struct {
	at  time.Time
	cpu time.Duration
	mem runtime.MemStats
}

func began() *usage {
	u := &usage{}
	runtime.GC()
	u.begin()
	return u
}

// begin begins the measurement anew.
func (u *usage) begin() {
	runtime.ReadMemStats(&u.mem)
	u.cpu, u.at = cpuTime(), time.Now()
}

// ended returns the cost of n messages since.
func (u *usage) ended(n int) result {
	took, cpu := time.Since(u.at), cpuTime()-u.cpu
	var mem runtime.MemStats
	runtime.ReadMemStats(&mem)
	return result{
		rate:     float64(n) / took.Seconds(),
		cpu:      cpu / time.Duration(n),
		allocs:   float64(mem.Mallocs-u.mem.Mallocs) / float64(n),
		bytes:    float64(mem.TotalAlloc-u.mem.TotalAlloc) / float64(n),
		resident: residentSet(),
	}
}

// cpuTime is the CPU time of the program, without the brokers.
func cpuTime() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// residentSet is 0 where the system does not tell.
func residentSet() int64 {
	text, err := os.ReadFile("/proc/self/statm")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseInt(fields[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
