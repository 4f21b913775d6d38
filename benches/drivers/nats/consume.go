package main

import (
	"context"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// Reads a stream from its first message on; left is how many it still has.
type reader struct {
	messages jetstream.MessagesContext
	left     int64
}

// Reads the topic to where it ended at the start, once for every group; nothing is acknowledged.
func (l *load) consume(url string, groups int) error {
	readers := make([]*reader, groups)
	for at := range readers {
		connection, js, err := connect(url)
		if err != nil {
			return err
		}
		defer connection.Close()
		readers[at], err = messagesOf(js, l.Topic, jetstream.DeliverAllPolicy)
		if err != nil {
			return err
		}
		defer readers[at].messages.Stop()
	}
	l.readAll(readers, l.Warmup, newTally())
	most := int64(1) << 62
	if l.Extent.Messages != nil {
		most = *l.Extent.Messages
	}
	return report(func(t *tally) { l.readAll(readers, most, t) })
}

// A consumer of its own, with as many messages asked for ahead as NATS's client does by itself.
func messagesOf(js jetstream.JetStream, stream string, from jetstream.DeliverPolicy) (*reader, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	consumer, err := js.CreateConsumer(ctx, stream, jetstream.ConsumerConfig{
		AckPolicy:     jetstream.AckNonePolicy,
		DeliverPolicy: from,
		MemoryStorage: true,
	})
	if err != nil {
		return nil, err
	}
	messages, err := consumer.Messages()
	if err != nil {
		return nil, err
	}
	return &reader{messages, int64(consumer.CachedInfo().NumPending)}, nil
}

func (l *load) readAll(readers []*reader, most int64, t *tally) {
	var done sync.WaitGroup
	for _, reader := range readers {
		done.Add(1)
		go func() {
			defer done.Done()
			reader.read(most, l.Batch, t)
		}()
	}
	done.Wait()
}

// Reads most messages, or all that are left; the latency is how long a batch of them took to come.
func (r *reader) read(most, batch int64, t *tally) {
	for read := int64(0); r.left > 0 && read < most; {
		since := time.Now()
		messages := min(batch, r.left)
		for range messages {
			if _, err := r.messages.Next(jetstream.NextMaxWait(requestTimeout)); err != nil {
				t.ended(since, 0, err)
				return
			}
		}
		read += messages
		r.left -= messages
		t.ended(since, messages, nil)
	}
}
