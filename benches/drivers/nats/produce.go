package main

import (
	"fmt"
	"sync"

	"github.com/nats-io/nats.go/jetstream"
)

// Publishes messages, each acknowledged by itself.
func (l *load) produce(url string) error {
	connections := make([]jetstream.JetStream, l.Connections)
	for at := range connections {
		connection, js, err := connect(url)
		if err != nil {
			return err
		}
		defer connection.Close()
		connections[at] = js
	}
	subjects := make([]string, l.Queues)
	for at := range subjects {
		subjects[at] = fmt.Sprintf("%s.%d", l.Topic, at)
	}
	body := l.body()
	l.publish(connections, l.warmUp().begin(), newTally(), subjects, body)
	return report(func(t *tally) { l.publish(connections, l.measured().begin(), t, subjects, body) })
}

// Lets as many lanes as may be in flight publish until the schedule ends. A lane that fails does no more.
func (l *load) publish(connections []jetstream.JetStream, s *schedule, t *tally, subjects []string, body []byte) {
	var done sync.WaitGroup
	for range l.InFlight {
		done.Add(1)
		go func() {
			defer done.Done()
			for turn, more := s.take(); more; turn, more = s.take() {
				subject := subjects[turn.number%int64(len(subjects))]
				js := connections[turn.number%int64(len(connections))]
				err := publish(js, subject, body, turn.messages)
				t.ended(turn.due, turn.messages, err)
				if err != nil {
					return
				}
			}
		}()
	}
	done.Wait()
}

// Publishes together what belongs to one operation, and waits for all acknowledgements.
func publish(js jetstream.JetStream, subject string, body []byte, messages int64) error {
	acks := make([]jetstream.PubAckFuture, messages)
	for at := range acks {
		ack, err := js.PublishAsync(subject, body)
		if err != nil {
			return err
		}
		acks[at] = ack
	}
	for _, ack := range acks {
		select {
		case <-ack.Ok():
		case err := <-ack.Err():
			return err
		}
	}
	return nil
}
