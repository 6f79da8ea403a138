package flags

import "fmt"

// UsageError is a mistake of the caller: a wrong flag, variable or argument.
type UsageError struct{ err error }

// Error implements error.
func (e *UsageError) Error() string { return e.err.Error() }

// Unwrap returns what is wrong.
func (e *UsageError) Unwrap() error { return e.err }

// Usagef makes a [UsageError] as fmt.Errorf makes an error.
func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}
