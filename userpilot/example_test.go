package userpilot_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/userpilot/userpilottest"
)

func ExampleParse() {
	event, err := userpilot.Parse([]byte(`{"user_id":"user_789456","metadata":{"name":"Sarah Johnson"}}`))
	fmt.Println(event.UserID(), err)

	_, err = userpilot.Parse([]byte(`{"user_id":"user_789456","company":{"name":"TechStartup Inc."}}`))
	fmt.Println(err)
	// Output:
	// user_789456 <nil>
	// company.id: is missing: a company needs an id or a company_id
}

func ExampleMerge() {
	var events []userpilot.Event
	for _, body := range []string{
		`{"user_id":"u1","metadata":{"plan":"trial","seats":1.0}}`,
		`{"user_id":"u1","metadata":{"plan":null},"company":{"id":"c1"}}`,
		`{"user_id":"u1","company":{"id":"c2"}}`,
	} {
		event, _ := userpilot.Parse([]byte(body))
		events = append(events, event)
	}
	for len(events) > 0 {
		body, n := userpilot.Merge(events)
		fmt.Println(n, string(body))
		events = events[n:]
	}
	// Output:
	// 2 {"user_id":"u1","metadata":{"seats":1.0,"plan":null},"company":{"id":"c1"}}
	// 1 {"user_id":"u1","company":{"id":"c2"}}
}

func ExampleClient_Identify() {
	api := userpilottest.New(userpilottest.Options{Key: "our-key"})
	key, _ := userpilot.NewKey("our-key")
	client, err := userpilot.NewClient(userpilot.ClientConfig{Key: key, Transport: api.Transport()})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	fmt.Println(client.Identify(ctx, []byte(`{"user_id":"u1","metadata":{"plan":"trial"}}`)))

	err = client.Identify(ctx, []byte(`{"metadata":{}}`))
	fmt.Println(err)
	if failure, ok := errors.AsType[*userpilot.Error](err); ok {
		fmt.Println(failure.Status, failure.Message)
	}
	// Output:
	// <nil>
	// identify: answered 400, code missing_user_id, request stand-in-2
	// 400 user_id is required and must be a string
}
