package main

import (
	"encoding/json"
	"fmt"
	"time"
)

// What is asked for, as the program that compares writes it.
type load struct {
	What        json.RawMessage `json:"what"`
	Topic       string          `json:"topic"`
	Queues      int64           `json:"queues"`
	Size        int             `json:"size"`
	Batch       int64           `json:"batch"`
	InFlight    int             `json:"in_flight"`
	Connections int             `json:"connections"`
	Rate        *float64        `json:"rate"`
	Warmup      int64           `json:"warmup"`
	Extent      struct {
		Messages *int64 `json:"messages"`
		Millis   *int64 `json:"millis"`
	} `json:"extent"`
}

func readLoad(text string) (*load, error) {
	var load load
	return &load, json.Unmarshal([]byte(text), &load)
}

func (l *load) run(url string) error {
	var named string
	if json.Unmarshal(l.What, &named) == nil {
		if named != "produce" {
			return fmt.Errorf("NATS has no %s", named)
		}
		return l.produce(url)
	}
	var what struct {
		Consume *struct {
			Groups int `json:"groups"`
		} `json:"consume"`
	}
	if err := json.Unmarshal(l.What, &what); err != nil || what.Consume == nil {
		return fmt.Errorf("%s cannot be measured", l.What)
	}
	return l.consume(url, what.Consume.Groups)
}

// The body of every message: no zeroes, which a file system might leave out.
func (l *load) body() []byte {
	body := make([]byte, l.Size)
	for at := range body {
		body[at] = 'a' + byte(at%26)
	}
	return body
}

// So many messages; a slow server needs no more than some time.
func (l *load) warmUp() plan {
	plan := l.measured()
	plan.messages, plan.time = l.Warmup, 20*time.Second
	if l.Warmup == 0 {
		plan.time = 0
	}
	return plan
}

func (l *load) measured() plan {
	plan := plan{batch: l.Batch}
	if l.Rate != nil {
		plan.rate = *l.Rate
	}
	if l.Extent.Messages != nil {
		plan.messages = *l.Extent.Messages
	}
	if l.Extent.Millis != nil {
		plan.time = time.Duration(*l.Extent.Millis) * time.Millisecond
	}
	return plan
}
