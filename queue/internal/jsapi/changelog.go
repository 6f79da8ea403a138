package jsapi

import "log/slog"

// ChangeLog logs a problem once when it starts or changes, and once when it is over. It is not safe
// for concurrent use.
type ChangeLog struct{ last string }

// Report notes the current problem; nil means that there is none.
func (c *ChangeLog) Report(log *slog.Logger, err error) {
	switch {
	case err != nil && err.Error() != c.last:
		c.last = err.Error()
		log.Warn("cannot work now, retrying", slog.Any("reason", err))
	case err == nil && c.last != "":
		c.last = ""
		log.Info("working again")
	}
}
