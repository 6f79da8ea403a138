//go:build !noembed

package queue_test

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/embedded"
	"github.com/identify-worker/identify-worker/userpilot"
)

// exampleQueue is a pipeline on a server of its own. A real program would get its connection from
// queue.Connect.
func exampleQueue(ctx context.Context) (q *queue.Queue, stop func()) {
	dir, err := os.MkdirTemp("", "example")
	check(err)
	server, err := embedded.Start(embedded.Config{Dir: dir})
	check(err)
	nc, err := server.Connect()
	check(err)
	q, err = queue.New(nc, queue.Topology{}, nil)
	check(err)
	_, err = q.Setup(ctx, false)
	check(err)
	return q, func() {
		nc.Close()
		server.Shutdown()
		check(os.RemoveAll(dir))
	}
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func ExamplePublisher_Publish() {
	ctx := context.Background()
	q, stop := exampleQueue(ctx)
	defer stop()
	publisher := q.NewPublisher(queue.PublisherConfig{})
	defer publisher.Close(ctx)

	receipt, err := publisher.Publish(ctx, []byte(`{"user_id":"ann","metadata":{"plan":"pro"}}`))
	fmt.Println(receipt.Sequence, err)

	_, err = publisher.Publish(ctx, []byte(`{"metadata":{"plan":"pro"}}`))
	var invalid *userpilot.InvalidError
	fmt.Println(errors.As(err, &invalid), err)
	// Output:
	// 1 <nil>
	// true user_id: is missing
}

func ExamplePublisher_PublishAsync() {
	ctx := context.Background()
	q, stop := exampleQueue(ctx)
	defer stop()
	publisher := q.NewPublisher(queue.PublisherConfig{})

	var results []*queue.Result
	for _, plan := range []string{"trial", "basic", "pro"} {
		body := fmt.Appendf(nil, `{"user_id":"ann","metadata":{"plan":%q}}`, plan)
		result, err := publisher.PublishAsync(ctx, body)
		check(err)
		results = append(results, result)
	}
	check(publisher.Close(ctx)) // waits for all of them

	for _, result := range results {
		receipt, err := result.Wait(ctx)
		fmt.Println(receipt.Sequence, err)
	}
	// Output:
	// 1 <nil>
	// 2 <nil>
	// 3 <nil>
}

func ExampleAsBackfill() {
	ctx := context.Background()
	q, stop := exampleQueue(ctx)
	defer stop()
	publisher := q.NewPublisher(queue.PublisherConfig{})
	defer publisher.Close(ctx)

	// An import of all users: it delays no event that an app publishes meanwhile.
	for i := range 3 {
		_, err := publisher.PublishAsync(ctx, fmt.Appendf(nil, `{"user_id":"user%d","metadata":{"plan":"basic"}}`, i), queue.AsBackfill())
		check(err)
	}
	check(publisher.Flush(ctx))

	// An app's event of one of these users. The worker calls for it first, and the plan stays "pro".
	receipt, err := publisher.Publish(ctx, []byte(`{"user_id":"user1","metadata":{"plan":"pro"}}`))
	fmt.Println(receipt.Sequence, err)
	// Output:
	// 4 <nil>
}
