package queue

import "log/slog"

// changeLog logs a trouble once when it begins or changes, and once when it is over. It is
// one goroutine's.
type changeLog struct{ last string }

func (c *changeLog) report(log *slog.Logger, err error) {
	switch {
	case err != nil && err.Error() != c.last:
		c.last = err.Error()
		log.Warn("cannot work now, trying again", slog.Any("reason", err))
	case err == nil && c.last != "":
		c.last = ""
		log.Info("working again")
	}
}
