// Loads a NATS server with JetStream through NATS's own client.
//
//	driver topic URL NAME QUEUES     a stream NAME with subjects NAME.0, NAME.1, …
//	driver load  URL LOAD            LOAD is a JSON document
//	driver first URL NAME            one message to stream NAME, as soon as the server takes it
//	driver wait  URL NAME            a consumer that waits for messages, until it is killed
//
// A load prints "measuring" when the warm-up is over, and the report as JSON.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// How long one request may take.
const requestTimeout = 10 * time.Second

// More than a load ever has in flight: the load's own bound counts.
const maxPending = 1 << 20

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "topic":
		return createTopic(args[1], args[2], args[3])
	case len(args) == 3 && args[0] == "load":
		load, err := readLoad(args[2])
		if err != nil {
			return err
		}
		return load.run(args[1])
	case len(args) == 3 && args[0] == "first":
		return first(args[1], args[2])
	case len(args) == 3 && args[0] == "wait":
		return wait(args[1], args[2])
	default:
		return errors.New("use: driver topic URL NAME QUEUES, or driver load|first|wait URL …")
	}
}

// A stream is the topic. It has no parts that are ordered by themselves, as queues are: their place is taken by
// subjects, which a consumer can filter by.
func createTopic(url, name, queues string) error {
	if _, err := strconv.Atoi(queues); err != nil {
		return err
	}
	connection, js, err := connect(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	_, err = js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{
		Name:     name,
		Subjects: []string{name + ".*"},
		Storage:  jetstream.FileStorage,
	})
	return err
}

func first(url, name string) error {
	if err := createTopic(url, name, "1"); err != nil {
		return err
	}
	connection, js, err := connect(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	return publish(js, name+".0", []byte("first"), 1)
}

func wait(url, name string) error {
	connection, js, err := connect(url)
	if err != nil {
		return err
	}
	defer connection.Close()
	messages, err := messagesOf(js, name, jetstream.DeliverNewPolicy)
	if err != nil {
		return err
	}
	for {
		if _, err := messages.messages.Next(); err != nil {
			return err
		}
	}
}

func connect(url string) (*nats.Conn, jetstream.JetStream, error) {
	connection, err := nats.Connect(url)
	if err != nil {
		return nil, nil, err
	}
	js, err := jetstream.New(connection, jetstream.WithPublishAsyncTimeout(requestTimeout),
		jetstream.WithPublishAsyncMaxPending(maxPending))
	if err != nil {
		connection.Close()
		return nil, nil, err
	}
	return connection, js, nil
}
