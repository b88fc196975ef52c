package kafka_test

import (
	"syscall"
	"testing"
)

func cpu() int64 {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return r.Utime.Nano() + r.Stime.Nano()
}

func cpuSince(b *testing.B, t int64, n int) {
	b.ReportMetric(float64(cpu()-t)/float64(n), "cpu-ns/msg")
}
