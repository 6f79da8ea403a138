package deadletter

import (
	"slices"
	"testing"
)

// A group's id depends on the cause alone, and on a secret without which nobody can try out texts.
func TestGroup(t *testing.T) {
	t.Parallel()
	seal := Seal("secret")
	of := func(reason Reason, status int, text, user string) string {
		return seal.Group(Death{Reason: reason, Status: status, Error: text, User: user, Attempts: len(text)})
	}
	// The output of printf 'group\n%s\n%s\n%s' REASON STATUS PATTERN | openssl dgst -sha256 -hmac secret -binary |
	// basenc --base64url | tr -d = | tr -d '\n' | sha256sum | cut -c -8
	const want = "b11e5ef4"
	if got := of(Rejected, 422, "plan \"x\" of\nann is unknown", "ann"); got != want || of(Rejected, 422, "plan \"yy\" of bob is unknown", "bob") != want {
		t.Errorf("%s, want %s", got, want)
	}
	for _, other := range []string{
		of(Invalid, 422, "plan \"x\" of ann is unknown", "ann"), of(Rejected, 400, "plan \"x\" of ann is unknown", "ann"),
		of(Rejected, 422, "plan \"x\" of ann is old", "ann"), Seal("another").Group(Death{Reason: Rejected, Status: 422, Error: "plan \"x\" of ann is unknown", User: "ann"}),
	} {
		if other == want || readGroup(other) != other {
			t.Errorf("another cause, or another secret, makes %s", other)
		}
	}
	if got := Seal(nil).Group(Death{Reason: Rejected}); got != "" {
		t.Errorf("without a secret it is %s", got)
	}
	for _, text := range []string{"", "4be1d07", "4be1d07ab", "4be1d07x", "+be1d07a", "\x1b[2J\x1b[2J"} {
		if got := readGroup(text); got != "" {
			t.Errorf("%q is the group %q", text, got)
		}
	}
}

// The messages of APIs, and of what stands in front of them: the same message makes one group,
// whatever values it has, and two messages make two.
func TestGroupsOfMessages(t *testing.T) {
	t.Parallel()
	groups := map[string]string{}
	for _, test := range []struct {
		want     string // the pattern
		messages []string
	}{
		// Rails
		{"email: has already been taken", []string{"email: has already been taken"}},
		{"email: is invalid; name: can't be blank", []string{"email: is invalid; name: can't be blank"}},
		{"Validation failed: Email … is not allowed, Name can't be blank", []string{
			"Validation failed: Email ann@example.com is not allowed, Name can't be blank",
			"Validation failed: Email bob.smith+x@mail.example.org is not allowed, Name can't be blank",
		}},
		{"Couldn't find User with '…'", []string{"Couldn't find User with 'id'=42", "Couldn't find User with 'id'=6f1c1b0e-8a2e-4f0c-9d5e-0f2b7f9c1a2b"}},
		// Django REST framework
		{"email: Enter a valid email address.", []string{"email: Enter a valid email address."}},
		{"email: This field may not be blank.", []string{"email: This field may not be blank."}},
		{`plan: "…" is not a valid choice.`, []string{`plan: "gold" is not a valid choice.`, `plan: "Ann's plan" is not a valid choice.`, `plan: "" is not a valid choice.`}},
		{"name: Ensure this field has no more than … characters.", []string{"name: Ensure this field has no more than 255 characters.", "name: Ensure this field has no more than 65535 characters."}},
		{`Invalid pk "…" - object does not exist.`, []string{`Invalid pk "42" - object does not exist.`, `Invalid pk "abc" - object does not exist.`}},
		// Laravel
		{"The given data was invalid.: email: The email must be a valid email address.", []string{"The given data was invalid.: email: The email must be a valid email address."}},
		{"The user id field is required. (and … more errors)", []string{"The user id field is required. (and 2 more errors)", "The user id field is required. (and 11 more errors)"}},
		{"The selected plan is invalid.", []string{"The selected plan is invalid."}},
		// Spring
		{"JSON parse error: Cannot deserialize value of type `…` from String \"…\": not a valid `…` value", []string{
			"JSON parse error: Cannot deserialize value of type `java.lang.Integer` from String \"ann\": not a valid `java.lang.Integer` value",
			"JSON parse error: Cannot deserialize value of type `int` from String \"12 seats\": not a valid `int` value",
		}},
		{"Bad Request: Failed to convert property value of type '…' to required type '…' for property '…'", []string{
			"Bad Request: Failed to convert property value of type 'java.lang.String' to required type 'int' for property 'seats'",
		}},
		// RFC 9457
		{"You do not have enough credit.: Your current balance is …, but that costs ….", []string{
			"You do not have enough credit.: Your current balance is 30, but that costs 50.",
			"You do not have enough credit.: Your current balance is -1,204.50, but that costs 7.",
		}},
		{"Your request parameters didn't validate.: age: must be a positive integer; color: must be '…' or '…'", []string{
			"Your request parameters didn't validate.: age: must be a positive integer; color: must be 'green' or 'blue'",
		}},
		{"Not Found: No user … in workspace …", []string{"Not Found: No user usr_9fK2 in workspace ws-17", "Not Found: No user 12345 in workspace 8b7c"}},
		// In front of an API
		{"Request blocked. We can't connect to the server for this app or website at this time. Request ID: …", []string{
			"Request blocked. We can't connect to the server for this app or website at this time. Request ID: aB3dE5fG7hI9==",
			"Request blocked. We can't connect to the server for this app or website at this time. Request ID: Zz91kLmN0pQrS_T-u8==",
		}},
		{"Forbidden", []string{"Forbidden"}},
		{"… Request Entity Too Large nginx", []string{"413 Request Entity Too Large nginx"}},
		{"… Bad Request …", []string{"400 Bad Request nginx/1.25.3", "400 Bad Request nginx/1.27.0"}},
		{"upstream connect error or disconnect/reset before headers. reset reason: connection failure", []string{
			"upstream connect error or disconnect/reset before headers. reset reason: connection failure",
		}},
		{"User … has … active sessions since … and may not be changed", []string{
			"User ann@example.com has 3 active sessions since 2026-01-02T03:04:05Z and may not be changed",
			"User 42 has 17 active sessions since 2025-12-31 23:59:59 and may not be changed",
		}},
	} {
		for _, message := range test.messages {
			l := &Letter{Death: Death{Reason: Rejected, Status: 422, Error: message, User: "42"}}
			if got := l.Pattern(); got != test.want {
				t.Errorf("%s\n got %s\nwant %s", message, got, test.want)
			}
			group := Seal("secret").Group(l.Death)
			if first, known := groups[group]; known && !slices.Contains(test.messages, first) {
				t.Errorf("one group:\n%s\n%s", first, message)
			}
			groups[group] = message
		}
	}
	if len(groups) < 20 {
		t.Errorf("%d groups", len(groups))
	}
}
