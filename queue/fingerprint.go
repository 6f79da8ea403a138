package queue

// Group is the letter's fingerprint: letters that died of the same have the same.
func (l *DeadLetter) Group() string { return "" }
