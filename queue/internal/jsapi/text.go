package jsapi

import (
	"crypto/sha256"
	"encoding/base64"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxHeaderValue bounds each header, so that a dead letter is never too large to store.
const MaxHeaderValue = 1024

// Clean makes text fit for a header: one line of printable characters, truncated at
// [MaxHeaderValue] bytes.
func Clean(text string) string {
	runes := make([]rune, 0, min(len(text), MaxHeaderValue))
	size := 0
	for _, r := range text {
		if !unicode.IsPrint(r) {
			r = ' '
		}
		if size += utf8.RuneLen(r); size > MaxHeaderValue {
			break
		}
		runes = append(runes, r)
	}
	for len(runes) > 0 && runes[0] == ' ' {
		runes = runes[1:]
	}
	for len(runes) > 0 && runes[len(runes)-1] == ' ' {
		runes = runes[:len(runes)-1]
	}
	return string(runes)
}

// Atoi parses a number that is not negative; anything else is 0.
func Atoi(text string) int {
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// Cut shortens text to at most limit bytes, between two characters.
func Cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "")
}

// UserHash is a short hash that represents a user in a subject or a record. It is part of stored
// forms, and does not change.
func UserHash(userID string) string {
	sum := sha256.Sum256([]byte(userID))
	return base64.RawURLEncoding.EncodeToString(sum[:12])
}
