package main

import "slices"

// mutant is the product with a bug planted in it, as its authors might have made it, and the test
// that must find it.
type mutant struct {
	name    string
	promise string // that it breaks
	edits   []edit
	pkg     string // a folder
	test    string // as for "go test -run"
}

type edit struct{ File, Old, New string }

// mutants are bugs that the packages' own tests must find, in seconds and with a text. Those that
// only show in a fleet of processes are in the campaign, integration/chaos.
func mutants() []mutant {
	return slices.Concat(
		deadLetterMutants(), fleetMutants(), claimMutants(), eventMutants(), clockMutants(), ledgerMutants(),
		connectionMutants(), callMutants(), handOverMutants(), stuckMutants(),
	)
}

func deadLetterMutants() []mutant {
	return []mutant{
		{
			"that a letter is there already is believed unseen", "nothing accepted is lost",
			[]edit{{"queue/deadletter.go", "_, err = c.q.readLeader(ctx, c.q.topology.DeadStreamName(), lastBySubject{letters})", "err = nil"}},
			"queue", "TestBuryLooksForTheLetter",
		},
		{
			"a dead letter is stored once for each try", "a dead letter is made exactly once",
			[]edit{{"queue/deadletter.go", "msg, jetstream.WithExpectLastSequenceForSubject(0, letters))", "msg, []jetstream.PublishOpt{}...)"}},
			"queue", "TestBuryExactlyOnce",
		},
		{
			"a record that the guard does not know of is overwritten", "a replay never overwrites newer data",
			[]edit{{"queue/versions.go", "WithExpectLastSequencePerSubject(n.revision))", "WithMsgTTL(time.Hour))"}},
			"queue", "TestBuryKeepsTheRecord",
		},
		{
			"a dead letter is stored once for each reason", "a dead letter is made exactly once",
			[]edit{{"queue/deadletter.go", "jetstream.WithExpectLastSequenceForSubject(0, letters)", "jetstream.WithExpectLastSequencePerSubject(0)"}},
			"queue", "TestBuryExactlyOnce",
		},
		{
			"all letters are discarded with their records, though one is gone as a replay", "a replay never overwrites newer data",
			[]edit{{"queue/discard.go", "return all == later+d.s.Letters, err", "return all >= later, err"}, {"queue/discard.go", "if found < len(d.s.ids) {", "if false {"}},
			"queue", "TestDiscardGuarded",
		},
		{
			"a purge trusts a copy of the stream that may lag", "what is purged is gone",
			[]edit{{"queue/purge.go", "if errors.Is(err, jetstream.ErrMsgNotFound) || err == nil && m.Sequence > r.to {", "if true {"}},
			"queue", "TestPurgeLaggingCopy",
		},
		{
			"a forged origin that is newer than its event is believed", "a replay never overwrites newer data",
			[]edit{{"queue/tracked_users.go", "d.Past.Forced || d.Past.Origin.Compare(own) > 0 {", "d.Past.Forced {"}},
			"queue", "TestOriginIsNeverNewer",
		},
		{
			"a later verdict overwrites the first", "a replay is judged once: history and canary tell what happened",
			[]edit{{"queue/outcome.go", "m, jetstream.WithExpectLastSequencePerSubject(before))", "m)\n\t\t_ = before"}},
			"queue", "TestFirstVerdictStands",
		},
		{
			"a replay that dies again leaves its old letter open", "a user whose letters are gone is guarded no longer",
			[]edit{{"queue/tracked_users.go", "if r.open(c.place(d), until); d.Past != nil {", "if r.open(c.place(d), until); false {"}},
			"queue", "TestNewerAfterDyingAgain",
		},
		{
			"a copy of the audit trail without the run's record is believed", "an event is replayed once",
			[]edit{{"queue/replay_outcomes.go", "if run == 0 || upTo < r.readThrough {", "if upTo < r.readThrough {"}},
			"queue", "TestReplayAsksAgainWhoLags",
		},
		{
			"a copy of the audit trail that is older than what was heard is believed", "an event is replayed once",
			[]edit{{"queue/replay_outcomes.go", "if run == 0 || upTo < r.readThrough {", "if run == 0 || upTo == 0 {"}},
			"queue", "TestVerdictsAreNotOlderThanWhatWasHeard",
		},
		{
			"a replay's message id is forgotten", "an event is replayed once",
			[]edit{{"queue/replaying.go", "WithMessageID(r.seal.replayID(l.Letter)), ", ""}},
			"queue", "TestReplayTwoAtOnce",
		},
		{
			"a letter that was left is deleted with those after it", "nothing accepted is lost",
			[]edit{{"queue/replaying.go", "r.whole = r.whole && !b.left", ""}},
			"queue", "TestReplayOfAllLeavesSome",
		},
		{
			"a copy that lags lets letters be deleted that were not replayed", "nothing accepted is lost",
			[]edit{{"queue/replaying.go", "b.end = letters[len(letters)-1].ID + 1", "b.end = r.s.ids[next-1] + 1"}},
			"queue", "TestReplayLeavesWhatACopyLacks",
		},
		{
			"a producer's headers are believed", "a replay is judged once: history and canary tell what happened",
			[]edit{{"queue/seal.go", "p == nil || !hmac.Equal([]byte(p.sealed), []byte(p.mark(s, body)))", "p == nil"}},
			"queue", "TestForgedHeadersMeanNothing",
		},
		{
			"a replay's seal leaves its event open", "a replay is judged once: history and canary tell what happened",
			[]edit{{"queue/seal.go", "untracked, string(body))", "untracked)"}},
			"queue", "TestForgedHeadersMeanNothing",
		},
		{
			"what the server takes for a copy of a replay is believed to be one", "nothing accepted is lost",
			[]edit{{"queue/replaying.go", "if err == nil && receipt.Duplicate {", "if false {"}},
			"queue", "TestReplayLooksAtTheCopy",
		},
		{
			"a replay's message id can be guessed", "a replay is stored",
			[]edit{{"queue/seal.go", `"replay." + s.mark("id", letter.String())`, `"replay." + letter.String()`}},
			"queue", "TestForgedReplaysDeleteNoLetter",
		},
		{
			"whatever lies in a verdict's place is one", "nothing accepted is lost",
			[]edit{{"queue/replay_outcomes.go", "v, err == nil && subject == t.outcomeSubject(v.Letter) && v.Outcome.known()", "v, err == nil || true"}},
			"queue", "TestForgedVerdicts",
		},
	}
}

func fleetMutants() []mutant {
	return []mutant{
		{
			"partitions change under replicas", "order for each user",
			[]edit{{"queue/setup.go", "case len(s.Replicas) > 0:", "case false:"}},
			"queue", "TestPartitionsAreKept",
		},
	}
}

// stuckMutants make a test wait for what never comes. It must say for what.
func stuckMutants() []mutant {
	return []mutant{
		{
			"a member that cannot renew goes on for ever", "order for each user",
			[]edit{{"queue/member.go", "if left <= 0 {", "if false {"}},
			"queue", "TestKeepEndsBeforeTheKey",
		},
		{
			"a member whose key is gone goes on", "order for each user",
			[]edit{{"queue/member.go", "return errKeyGone\n\t}\n\tif err != nil", "m.revision = 0\n\t\treturn m.renew(ctx)\n\t}\n\tif err != nil"}},
			"queue", "TestKeepAfterALostAnswer",
		},
		{
			"an acknowledgement that no consumer takes is overlooked", "nothing accepted is lost",
			[]edit{{"queue/settlement.go", "a.fail(errors.New(\"settle an event: no consumer took the acknowledgement\"))\n", ""}},
			"queue", "TestSettlersFail",
		},
		{
			"a deletion that is refused is overlooked", "nothing accepted is lost",
			[]edit{{"queue/settlement.go", "if err != nil && !again {", "if false {"}},
			"queue", "TestSettlersFail",
		},
		{
			"the guard forgets how far it has read", "a replay never overwrites newer data",
			[]edit{{"queue/tracked_users.go", "g.seen = max(g.seen, at.stream)", ""}},
			"queue", "TestGuardCatchesUp",
		},
		{
			"what is in a call is merged with what comes later", "order for each user",
			[]edit{{"worker/call.go", "l.fold = max(l.fold, n)", ""}},
			"worker", "TestFoldLeavesTheCallAlone",
		},
		{
			"events that must be looked at one by one stay merged", "one bad event harms nobody else",
			[]edit{{"worker/deliver.go", "\t\tl.unfold()\n", ""}},
			"worker", "TestUnfold",
		},
		{
			"the guard is never free again", "a replay never overwrites newer data",
			[]edit{{"queue/tracked_users.go", "defer func() { <-g.reading }()", ""}},
			"queue", "TestGuardCatchesUp",
		},
		{
			"a verdict that has come is awaited still", "a replay ends when its events are judged",
			[]edit{{"queue/replay_outcomes.go", "r.expected--\n\treturn true", "return true"}},
			"queue", "TestReplayWaits",
		},
		{
			"the last call in flight ends unnoticed", "a hand-over takes less than a second",
			[]edit{{"worker/partition.go", "*count--\n\tsignal(p.changed)", "*count--"}},
			"worker", "TestMemoryAfterRevoke",
		},
		{
			"an errand that has ended is not followed by the next", "a user's events wait for nothing but that user's",
			[]edit{{"worker/crew.go", "\t\terrand()\n", "\t\terrand()\n\t\treturn\n"}},
			"worker", "TestCrew",
		},
		{
			"what the guard refuses is sent", "no call without a claim, and none over the limit",
			[]edit{{"userpilot/attempt.go", "a.denied.Store(&err)\n\t\ta.reader.Reset(nil)", "a.denied.Store(&err)"}},
			"userpilot", "TestGuardRefuses$",
		},
	}
}
