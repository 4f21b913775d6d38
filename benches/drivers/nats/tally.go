package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	interval  = 100 * time.Millisecond
	mostNanos = int64(time.Hour)
)

// What was done in a phase, from when this is made on.
type tally struct {
	mutex      sync.Mutex // guards all that follows
	nanos      *hdrhistogram.Histogram
	series     []int64
	messages   int64
	errors     int64
	firstError *string
	start, end time.Time
}

func newTally() *tally {
	now := time.Now()
	return &tally{nanos: hdrhistogram.New(1000, mostNanos, 3), start: now, end: now}
}

// An operation that was due at since ended now.
func (t *tally) ended(since time.Time, messages int64, err error) {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.end = time.Now()
	if err != nil {
		t.errors++
		if t.firstError == nil {
			text := err.Error()
			t.firstError = &text
		}
		return
	}
	t.messages += messages
	_ = t.nanos.RecordValue(min(int64(t.end.Sub(since)), mostNanos)) // it is within the bounds
	at := int(t.end.Sub(t.start) / interval)
	for len(t.series) <= at {
		t.series = append(t.series, 0)
	}
	t.series[at] += messages
}

// Says that the measured phase begins, does it, and prints what came out.
func report(measure func(*tally)) error {
	fmt.Println("measuring")
	before := ownCPU()
	t := newTally()
	measure(t)
	cpu := ownCPU() - before
	seconds := max(t.end.Sub(t.start).Seconds(), 1e-9)
	histogram := [][2]any{}
	for _, bar := range t.nanos.Distribution() {
		if bar.Count > 0 {
			histogram = append(histogram, [2]any{float64(bar.To) / 1e3, bar.Count})
		}
	}
	latency := map[string]float64{"max": float64(t.nanos.Max()) / 1e6}
	for _, percentile := range []float64{50, 90, 99, 99.9, 99.99} {
		latency[fmt.Sprintf("p%v", percentile)] = float64(t.nanos.ValueAtQuantile(percentile)) / 1e6
	}
	client := map[string]any{"cpu_seconds": cpu, "rss_anon_peak_mib": anonymousMiB()}
	if t.messages > 0 {
		client["cpu_seconds_per_million"] = cpu * 1e6 / float64(t.messages)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]any{
		"messages":            t.messages,
		"errors":              t.errors,
		"first_error":         t.firstError,
		"seconds":             seconds,
		"messages_per_second": float64(t.messages) / seconds,
		"latency_ms":          latency,
		"histogram_us":        histogram,
		"series":              map[string]any{"interval_ms": interval.Milliseconds(), "messages": t.series},
		"client":              client,
	})
}

func ownCPU() float64 {
	var used syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &used) != nil {
		return 0
	}
	return float64(used.Utime.Nano()+used.Stime.Nano()) / 1e9
}

func anonymousMiB() float64 {
	status, _ := os.ReadFile("/proc/self/status") // without it nothing is found below
	for line := range strings.Lines(string(status)) {
		var kib float64
		if _, err := fmt.Sscanf(line, "RssAnon: %f kB", &kib); err == nil {
			return kib / 1024
		}
	}
	return 0
}
