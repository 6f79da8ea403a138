package main

import "slices"

// mutant is the product with a planted bug, one that its authors might have made, and the test that
// must find it.
type mutant struct {
	name    string
	promise string // the promise that the bug breaks
	edits   []edit
	pkg     string // a folder
	test    string // as for "go test -run"
}

type edit struct{ File, Old, New string }

// mutants are bugs that the packages' own tests must find within seconds, with a message. Bugs that
// show only in a fleet of processes are in the campaign, integration/chaos.
func mutants() []mutant {
	return slices.Concat(
		deadLetterMutants(), fleetMutants(), claimMutants(), liveMutants(), eventMutants(), clockMutants(), ledgerMutants(),
		connectionMutants(), callMutants(), handOverMutants(), stuckMutants(),
	)
}

func deadLetterMutants() []mutant {
	return []mutant{
		{
			"a dead letter is believed to be stored without a look", "nothing accepted is lost",
			[]edit{{"queue/deadletter/deadletter.go", "if m, err = s.api.ReadLast(ctx, s.topology.DeadStreamName(), letters); err == nil {", "if m, err = (&jsapi.StoredMessage{}), nil; err == nil {"}},
			"queue/deadletter", "TestBuryLooksForTheLetter",
		},
		{
			"each try stores a dead letter", "a dead letter is made exactly once",
			[]edit{{"queue/deadletter/deadletter.go", "msg, jetstream.WithExpectLastSequenceForSubject(0, letters))", "msg, []jetstream.PublishOpt{}...)"}},
			"queue/deadletter", "TestBuryExactlyOnce",
		},
		{
			"a version record that is not tracked is overwritten", "a replay never overwrites newer data",
			[]edit{{"queue/deadletter/versions.go", "WithExpectLastSequencePerSubject(n.revision))", "WithMsgTTL(time.Hour))"}},
			"queue/deadletter", "TestBuryKeepsTheRecord",
		},
		{
			"each reason stores a dead letter", "a dead letter is made exactly once",
			[]edit{{"queue/deadletter/deadletter.go", "jetstream.WithExpectLastSequenceForSubject(0, letters)", "jetstream.WithExpectLastSequencePerSubject(0)"}},
			"queue/deadletter", "TestBuryExactlyOnce",
		},
		{
			"version records are deleted although a dead letter was replayed meanwhile", "a replay never overwrites newer data",
			[]edit{{"queue/inspector/discard.go", "return all == later+d.s.Letters, err", "return all >= later, err"}, {"queue/inspector/discard.go", "if found < len(d.s.ids) {", "if false {"}},
			"queue/inspector", "TestDiscardGuarded",
		},
		{
			"a purge trusts a lagging replica of the stream", "purged data is gone",
			[]edit{{"queue/inspector/purge.go", "case errors.Is(err, jetstream.ErrMsgNotFound), err == nil && r.To != 0 && m.Sequence > r.To:", "case true:"}},
			"queue/inspector", "TestPurgeLaggingCopy",
		},
		{
			"a forged origin newer than its event is believed", "a replay never overwrites newer data",
			[]edit{{"queue/deadletter/store.go", "e.Replay.Forced || e.Replay.Origin.Compare(e.Name) > 0 {", "e.Replay.Forced {"}},
			"queue/deadletter", "TestOriginIsNeverNewer",
		},
		{
			"a later outcome overwrites the first", "a replay has one outcome: history and canary are right",
			[]edit{{"queue/deadletter/outcome.go", "m, jetstream.WithExpectLastSequencePerSubject(before))", "m)\n\t\t_ = before"}},
			"queue/deadletter", "TestFirstVerdictStands",
		},
		{
			"a replay that dies again leaves its old dead letter open", "a user without dead letters is not tracked",
			[]edit{{"queue/deadletter/tracked_users.go", "if r.open(e.Name, until); e.Replay != nil {", "if r.open(e.Name, until); false {"}},
			"queue/deadletter", "TestNewerAfterDyingAgain",
		},
		{
			"a replica of the audit trail without the run's record is believed", "an event is replayed once",
			[]edit{{"queue/inspector/replay_outcomes.go", "if run == 0 || upTo < r.readThrough {", "if upTo < r.readThrough {"}},
			"queue/inspector", "TestReplayAsksAgainWhoLags",
		},
		{
			"a replica of the audit trail older than known outcomes is believed", "an event is replayed once",
			[]edit{{"queue/inspector/replay_outcomes.go", "if run == 0 || upTo < r.readThrough {", "if run == 0 || upTo == 0 {"}},
			"queue/inspector", "TestVerdictsAreNotOlderThanWhatWasHeard",
		},
		{
			"a replay has no message id", "an event is replayed once",
			[]edit{{"queue/inspector/replaying.go", ", queue.WithMessageID(r.seal.ReplayID(l.Name)))...)", ")...)"}},
			"queue/inspector", "TestReplayTwoAtOnce",
		},
		{
			"a replay is published as live events", "live first",
			[]edit{{"queue/inspector/replaying.go", "queue.AsBackfill(), ", ""}},
			"queue/inspector", "TestReplaysAreBackfill",
		},
		{
			"a dead letter that was left out is deleted with later ones", "nothing accepted is lost",
			[]edit{{"queue/inspector/replaying.go", "r.whole = r.whole && !b.left", ""}},
			"queue/inspector", "TestReplayOfAllLeavesSome",
		},
		{
			"a lagging replica lets dead letters be deleted without a replay", "nothing accepted is lost",
			[]edit{{"queue/inspector/replaying.go", "b.end = letters[len(letters)-1].ID + 1", "b.end = r.s.ids[next-1] + 1"}},
			"queue/inspector", "TestReplayLeavesWhatACopyLacks",
		},
		{
			"a producer's headers are trusted", "a replay has one outcome: history and canary are right",
			[]edit{{"queue/deadletter/seal.go", "p == nil || !hmac.Equal([]byte(p.Sealed), []byte(p.Mark(s, body)))", "p == nil"}},
			"queue/inspector", "TestForgedHeadersMeanNothing",
		},
		{
			"a replay's seal does not cover its body", "a replay has one outcome: history and canary are right",
			[]edit{{"queue/deadletter/seal.go", "untracked, string(body))", "untracked)"}},
			"queue/inspector", "TestForgedHeadersMeanNothing",
		},
		{
			"a duplicate of a replay is believed without a look", "nothing accepted is lost",
			[]edit{{"queue/inspector/replaying.go", "if err == nil && receipt.Duplicate {", "if false {"}},
			"queue/inspector", "TestReplayLooksAtTheCopy",
		},
		{
			"a replay's message id can be guessed", "a replay is stored",
			[]edit{{"queue/deadletter/seal.go", `"replay." + s.Mark("id", letter.String())`, `"replay." + letter.String()`}},
			"queue/inspector", "TestForgedReplaysDeleteNoLetter",
		},
		{
			"any message in the place of an outcome is taken for one", "nothing accepted is lost",
			[]edit{{"queue/deadletter/outcome.go", "v, err == nil && subject == OutcomeSubject(t, v.Letter) && v.Outcome.known()", "v, err == nil || true"}},
			"queue/inspector", "TestForgedVerdicts",
		},
	}
}

func fleetMutants() []mutant {
	return []mutant{
		{
			"the partitions change while replicas run", "order for each user",
			[]edit{{"queue/setup.go", "case replicas > 0:", "case false:"}},
			"queue", "TestPartitionsAreKept",
		},
		{
			"backfill of a user is in another partition", "order for each user",
			[]edit{{"queue/topology.go", "{{partition(%d,2)}}", "{{partition(%d,1,2)}}"}},
			"queue", "TestBackfillIsAdded",
		},
	}
}

// stuckMutants make a test wait for something that never comes. The test must say for what.
func stuckMutants() []mutant {
	return []mutant{
		{
			"a member that cannot renew its key goes on", "order for each user",
			[]edit{{"queue/fleet/member.go", "if left <= 0 {", "if false {"}},
			"queue/fleet", "TestKeepEndsBeforeTheKey",
		},
		{
			"a member whose key is gone goes on", "order for each user",
			[]edit{{"queue/fleet/member.go", "return errKeyGone\n\t}\n\tif err != nil", "m.revision = 0\n\t\treturn m.renew(ctx)\n\t}\n\tif err != nil"}},
			"queue/fleet", "TestKeepAfterALostAnswer",
		},
		{
			"an acknowledgement without a consumer is not noticed", "nothing accepted is lost",
			[]edit{{"queue/fleet/settlement.go", "a.fail(errors.New(\"settle an event: no consumer took the acknowledgement\"))\n", ""}},
			"queue/fleet", "TestSettlersFail",
		},
		{
			"a refused deletion is not noticed", "nothing accepted is lost",
			[]edit{{"queue/fleet/settlement.go", "if err != nil && !again {", "if false {"}},
			"queue/fleet", "TestSettlersFail",
		},
		{
			"the tracked users forget how far they have read", "a replay never overwrites newer data",
			[]edit{{"queue/deadletter/tracked_users.go", "g.seen = max(g.seen, sequence)", ""}},
			"queue/deadletter", "TestGuardCatchesUp",
		},
		{
			"events in a call are merged with later ones", "order for each user",
			[]edit{{"worker/call.go", "l.fold = max(l.fold, n)", ""}},
			"worker", "TestFoldLeavesTheCallAlone",
		},
		{
			"events that must be checked one by one stay merged", "one bad event harms no other user",
			[]edit{{"worker/lane_state.go", "\t\tl.unfold()\n", ""}},
			"worker", "TestUnfold",
		},
		{
			"the tracked users are never read again", "a replay never overwrites newer data",
			[]edit{{"queue/deadletter/tracked_users.go", "defer func() { <-g.reading }()", ""}},
			"queue/deadletter", "TestGuardCatchesUp",
		},
		{
			"a replay waits for an outcome that it has read", "a replay ends when its events have outcomes",
			[]edit{{"queue/inspector/replay_outcomes.go", "\t\tr.awaiting[place] = notAwaited\n\t\tr.expected--\n", "\t\tr.awaiting[place] = notAwaited\n"}},
			"queue/inspector", "TestReplayWaits",
		},
		{
			"the end of the last call in flight is not noticed", "a handover takes less than a second",
			[]edit{{"worker/partition.go", "*count--\n\tsignal(p.changed)", "*count--"}},
			"worker", "TestMemoryAfterRevoke",
		},
		{
			"a finished task does not start the next", "a user's events wait for nothing but that user's",
			[]edit{{"worker/crew.go", "\t\trun()\n", "\t\trun()\n\t\treturn\n"}},
			"worker", "TestCrew",
		},
		{
			"a call that the guard refuses is sent", "no call without a claim, and none over the limit",
			[]edit{{"userpilot/attempt.go", "a.denied.Store(&err)\n\t\ta.reader.Reset(nil)", "a.denied.Store(&err)"}},
			"userpilot", "TestGuardRefuses$",
		},
	}
}
