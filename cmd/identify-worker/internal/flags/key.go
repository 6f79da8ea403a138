package flags

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/identify-worker/identify-worker/userpilot"
)

const (
	// KeyVariable holds the key itself. There is no flag for that: other users of the
	// machine could read it in the list of processes.
	KeyVariable = "USERPILOT_API_KEY"

	// keyInterval is how often the key's file is read again. Reading and not watching:
	// mounted secrets are replaced by renaming a folder above them, and two seconds are
	// soon enough.
	keyInterval = 2 * time.Second

	maxKeyBytes = 4 << 10
)

// KeySource is where the API key comes from: a file or an environment variable. The file wins.
type KeySource struct {
	file string
	env  string
}

// NewKeySource adds the flag for the file with the key.
func NewKeySource(f Set, env func(string) string) *KeySource {
	k := &KeySource{env: env(KeyVariable)}
	f.Text(&k.file, "api-key-file", "file", "`file` with the API key, reloaded when it changes; or set "+KeyVariable)
	return k
}

// FixedKey is a key that comes from neither a file nor the environment.
func FixedKey(key string) *KeySource { return &KeySource{env: key} }

// Read returns the current key.
func (k *KeySource) Read() (userpilot.Key, error) {
	if k.file == "" && k.env == "" {
		return userpilot.Key{}, Usagef("no API key: set %s, or give --api-key-file [USERPILOT_API_KEY_FILE]", KeyVariable)
	}
	if k.file == "" {
		key, err := userpilot.NewKey(k.env)
		if err != nil {
			return key, Usagef("%s: %w", KeyVariable, err)
		}
		return key, nil
	}
	key, err := readKey(k.file)
	if err != nil {
		return key, Usagef("--api-key-file: %w", err)
	}
	return key, nil
}

func readKey(path string) (userpilot.Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return userpilot.Key{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyBytes+1))
	if err != nil {
		return userpilot.Key{}, err
	}
	if len(text) > maxKeyBytes {
		return userpilot.Key{}, errors.New("the file is too large for a key")
	}
	return userpilot.NewKey(string(text))
}

// keyed takes a new key.
type keyed interface {
	SetKey(userpilot.Key)
	KeyFingerprint() string
}

// Watch gives the client each new key that appears in the file, and signals changed. It blocks
// until ctx ends. If the file cannot be read, the key stays as it is. Watch warns of a key that
// looks like an app token.
func (k *KeySource) Watch(ctx context.Context, client keyed, changed chan<- struct{}, log *slog.Logger) {
	if key, err := k.Read(); err == nil {
		warnOfAppToken(key, log)
	}
	if k.file == "" {
		return
	}
	tick := time.NewTicker(keyInterval)
	defer tick.Stop()
	broken := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		key, err := readKey(k.file)
		if err != nil && !broken {
			log.Warn("cannot use the API key file, keeping the old key", "error", err)
		}
		if broken = err != nil; broken || key.Fingerprint() == client.KeyFingerprint() {
			continue
		}
		client.SetKey(key)
		log.Info("the API key has changed", "fingerprint", key.Fingerprint())
		warnOfAppToken(key, log)
		select {
		case changed <- struct{}{}:
		default: // the last change has not been noticed yet
		}
	}
}

// AppTokenHint says what is wrong with a key that looks like an app token.
const AppTokenHint = "begins with NX-, as an app token does, and Userpilot takes only an API key"

func warnOfAppToken(key userpilot.Key, log *slog.Logger) {
	if key.LooksLikeAppToken() {
		log.Warn("the API key "+AppTokenHint, "fingerprint", key.Fingerprint())
	}
}
