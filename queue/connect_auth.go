package queue

import (
	"bytes"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// authentication is the one way to authenticate that is configured; nil is none.
type authentication struct {
	fields  []string // of ConnectConfig
	options func() ([]nats.Option, error)
}

// authentication returns an error if several ways are configured, or one in part.
func (c *ConnectConfig) authentication() (*authentication, error) {
	var ways []*authentication
	add := func(used bool, options func() ([]nats.Option, error), fields ...string) {
		if used {
			ways = append(ways, &authentication{fields, options})
		}
	}
	add(hasUser(c.URL), func() ([]nats.Option, error) { return nil, nil }, "URL")
	add(c.Creds != "", c.byCreds, "Creds")
	add(c.NKey != "", c.byNKey, "NKey")
	add(c.User != "" || c.PasswordFile != "", c.byPassword, "User", "PasswordFile")
	add(c.TokenFile != "", c.byToken, "TokenFile")
	if len(ways) > 1 {
		return nil, fmt.Errorf("%s and %s: only one way to authenticate can be used", c.names(ways[0].fields), c.names(ways[1].fields))
	}
	if len(ways) == 0 {
		return nil, nil
	}
	return ways[0], nil
}

// names lists fields for an error.
func (c *ConnectConfig) names(fields []string) string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = c.name(f)
	}
	return strings.Join(names, ", ")
}

// authHint says where the rejected credentials come from.
func (c *ConnectConfig) authHint() string {
	way, _ := c.authentication() // Connect has accepted it
	switch {
	case way == nil:
		return "see " + c.names([]string{"Creds", "NKey", "User", "TokenFile"})
	case way.fields[0] == "URL":
		return "see user and password in " + c.name("URL")
	}
	return "see " + c.names(way.fields)
}

// hasUser reports whether any of the URLs, which have been checked, names a user.
func hasUser(urls string) bool {
	for text := range strings.SplitSeq(urls, ",") {
		if u, err := url.Parse(withScheme(text)); err == nil && u.User != nil {
			return true
		}
	}
	return false
}

func (c *ConnectConfig) byCreds() ([]nats.Option, error) {
	if err := checkCreds(c.Creds); err != nil {
		return nil, fmt.Errorf("%s: %w", c.name("Creds"), err)
	}
	return []nats.Option{nats.UserCredentials(c.Creds)}, nil
}

func (c *ConnectConfig) byNKey() ([]nats.Option, error) {
	if err := checkNKey(c.NKey); err != nil {
		return nil, fmt.Errorf("%s: %w", c.name("NKey"), err)
	}
	option, err := nats.NkeyOptionFromSeed(c.NKey)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name("NKey"), err)
	}
	return []nats.Option{option}, nil
}

func (c *ConnectConfig) byPassword() ([]nats.Option, error) {
	if c.User == "" || c.PasswordFile == "" {
		return nil, fmt.Errorf("%s: both are needed, or none", c.names([]string{"User", "PasswordFile"}))
	}
	password, err := c.secret("PasswordFile", c.PasswordFile)
	if err != nil {
		return nil, err
	}
	return []nats.Option{nats.UserInfoHandler(func() (string, string) { return c.User, password() })}, nil
}

func (c *ConnectConfig) byToken() ([]nats.Option, error) {
	token, err := c.secret("TokenFile", c.TokenFile)
	if err != nil {
		return nil, err
	}
	return []nats.Option{nats.TokenHandler(token)}, nil
}

// secret returns a function that reads the line in a file, and that returns what it read last if
// the file cannot be read. It is called at each attempt to connect, so it logs only changes: why the
// file cannot be read, and that it can be read again.
func (c *ConnectConfig) secret(field, path string) (func() string, error) {
	last, err := readLine(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c.name(field), err)
	}
	var mu sync.Mutex // held while reading, so that an older line does not replace a newer one
	logged := ""      // why it could not be read the last time
	return func() string {
		mu.Lock()
		defer mu.Unlock()
		line, err := readLine(path)
		switch {
		case err != nil && err.Error() != logged:
			logged = err.Error()
			c.Log.Warn("a secret cannot be read again, using the last one", "error", fmt.Errorf("%s: %w", c.name(field), err))
		case err == nil && logged != "":
			logged = ""
			c.Log.Info("a secret can be read again", "source", c.name(field))
		}
		if err == nil {
			last = line
		}
		return last
	}, nil
}

// readLine reads a file that holds one line, which is not empty.
func readLine(path string) (string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	line := string(bytes.TrimRight(text, "\r\n"))
	if line == "" || strings.ContainsAny(line, "\r\n") {
		return "", errors.New("the file must hold one line")
	}
	return line, nil
}

// nats.go reads credentials and keys again at each connect. We check them before the first one,
// when a broken file would look like a server that is not ready.

func checkCreds(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	_, errJWT := nkeys.ParseDecoratedJWT(text)
	_, errKey := nkeys.ParseDecoratedUserNKey(text)
	if errJWT != nil || errKey != nil {
		return errors.New("the file does not hold a NATS user's credentials")
	}
	return nil
}

func checkNKey(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if _, err := nkeys.ParseDecoratedUserNKey(text); err != nil {
		return errors.New("the file does not hold the seed of a NATS user's nkey, which begins with SU")
	}
	return nil
}
