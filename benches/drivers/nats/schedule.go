package main

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"
)

// One phase: so many messages, or what fits into a time; without messages the time alone counts. A rate of 0 is a
// closed loop.
type plan struct {
	messages int64
	time     time.Duration
	batch    int64
	rate     float64
}

// An operation: its messages, and when it was due. Its latency counts from there.
type turn struct {
	number   int64
	messages int64
	due      time.Time
}

// Hands out operations until there are enough.
type schedule struct {
	plan  plan
	start time.Time
	next  atomic.Int64
	// Operations that fell due, in an open loop.
	due chan turn
}

func (p plan) begin() *schedule {
	s := &schedule{plan: p, start: time.Now()}
	if p.rate > 0 {
		s.due = make(chan turn, 1024)
		go s.pace()
	}
	return s
}

// The next operation, when it is due; false when there are enough.
func (s *schedule) take() (turn, bool) {
	if s.due != nil {
		turn, more := <-s.due
		return turn, more
	}
	return s.turn(time.Now())
}

func (s *schedule) turn(due time.Time) (turn, bool) {
	number := s.next.Add(1) - 1
	messages := s.plan.batch
	if s.plan.messages > 0 || s.plan.time == 0 {
		messages = min(messages, s.plan.messages-number*s.plan.batch)
	}
	inTime := s.plan.time == 0 || due.Sub(s.start) < s.plan.time
	return turn{number, messages, due}, inTime && messages > 0
}

// Lets operations go as they fall due. It sleeps in the kernel: the runtime's timers are a millisecond coarse,
// which would be all the latency that is seen.
func (s *schedule) pace() {
	runtime.LockOSThread()
	defer close(s.due)
	each := float64(s.plan.batch) / s.plan.rate * float64(time.Second)
	for number := 0; ; number++ {
		due := s.start.Add(time.Duration(float64(number) * each))
		turn, more := s.turn(due)
		if !more {
			return
		}
		for wait := time.Until(due); wait > 0; wait = time.Until(due) {
			length := syscall.NsecToTimespec(int64(wait))
			_ = syscall.Nanosleep(&length, nil) // a signal only makes it shorter
		}
		s.due <- turn
	}
}
