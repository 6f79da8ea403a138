package main

import (
	"fmt"
	"strings"
)

// event returns an identify of exactly this many bytes.
func event(user string, bytes int) []byte {
	const head, tail = `{"user_id":"%s","metadata":{"plan":"pro","note":"`, `"}}`
	body := make([]byte, 0, bytes)
	body = fmt.Appendf(body, head, user)
	if n := bytes - len(body) - len(tail); n > 0 {
		body = append(body, strings.Repeat("x", n)...)
	}
	return append(body, tail...)
}

// userEvent returns the 1 KiB event of the i-th user.
func userEvent(i int) []byte { return event(userName(i), 1<<10) }

func userName(i int) string { return fmt.Sprintf("user-%07d", i) }
