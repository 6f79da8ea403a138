package main

// connectionMutants are bugs of the client.
func connectionMutants() []mutant {
	return []mutant{
		{
			"a token is taken before there is a connection", "the limit is used",
			[]edit{{
				"userpilot/attempt.go", "\tif err := c.pool.reserve(ctx, &call); err != nil {",
				"\tif err := call.begin(); err != nil {\n\t\treturn 0, &Error{Err: err}\n\t}\n\tcall.Begin = nil\n\tif err := c.pool.reserve(ctx, &call); err != nil {",
			}},
			"userpilot", "TestBeginHasConnection",
		},
		{
			"a transport without a trace is believed to have sent nothing", "order for each user",
			[]edit{{"userpilot/attempt.go", "!(silent && traced || isDialError(err))", "!(silent || isDialError(err))"}},
			"userpilot", "TestSentByOtherTransport",
		},
		{
			"a request is sent after its caller gave up", "order for each user",
			[]edit{{"userpilot/attempt.go", "if !a.stage.CompareAndSwap(waiting, writing) && a.stage.Load() == over {", "if !a.stage.CompareAndSwap(waiting, writing) && false {"}},
			"userpilot", "TestGivenUp",
		},
	}
}

// callMutants make forbidden calls, or misread their results.
func callMutants() []mutant {
	return []mutant{
		{
			"an expired slot is not noticed at the first byte", "no window holds more calls than the limit",
			[]edit{{"worker/call.go", "if c.slot.Expired() {", "if false {"}},
			"worker", "TestSlotIsAskedAtTheFirstByte",
		},
		{
			"an invalid claim is not noticed at the first byte", "order for each user",
			[]edit{{"worker/call.go", "if claim.Valid() != nil {", "if false {"}},
			"worker", "TestClaimIsAskedAtTheFirstByte",
		},
		{
			"a call cut off by the end of the membership counts as a failure", "only Userpilot's failures make dead letters",
			[]edit{{"worker/call.go", "if v != delivered && c.lane.partition.claim.Context().Err() != nil {", "if false {"}},
			"worker", "TestLapseIsNoFailure",
		},
		{
			"a try without a connection counts as an attempt", "only Userpilot's failures make dead letters",
			[]edit{{"worker/call.go", "if blame != unknown && (f.Sent || f.Status != 0) {", "if blame != unknown {"}},
			"worker", "TestNoConnectionIsNoAttempt",
		},
		{
			"calls that hang keep their senders", "one bad event harms no other user",
			[]edit{{"worker/token.go", "time.AfterFunc(slowCall, ", "time.AfterFunc(time.Hour, "}},
			"worker", "TestHangingUsers",
		},
		{
			"failing users take turns like the others", "one bad event harms no other user",
			[]edit{{"worker/lanequeue.go", "\tif l.failing() {", "\tif false && l.failing() {"}},
			"worker", "TestLaneQueueProbesAll",
		},
		{
			"a refusal without evidence kills", "only Userpilot's own refusals, and proven faults, make dead letters",
			[]edit{{"worker/gate.go", "\tcase !evidence:\n", "\tcase !evidence && r.reason == outage:\n"}, {"worker/gate.go", "\tcase proof:\n", "\tcase proof || r.reason != outage:\n"}},
			"worker", "TestVerdicts/key_and_address",
		},
		{
			"a web page counts as a delivery", "nothing accepted is lost",
			[]edit{{"userpilot/answer.go", "\tif page {", "\tif page && false {"}},
			"worker", "TestVerdicts/web_page",
		},
		{
			"a merged call takes its token before it is in the journal", "the limit is used",
			[]edit{
				{"worker/call.go", "if claim := c.lane.partition.claim; c.needsJournal() {", "if claim := c.lane.partition.claim; false {"},
				{
					"worker/call.go", "Begin: func() error { return w.begin(c) },",
					"Begin: func() error {\n\t\t\tif err := w.begin(c); err != nil || !c.needsJournal() {\n\t\t\t\treturn err\n\t\t\t}\n\t\t\treturn claim.BeginMerged(claim.Active(), c.lane.user, c.extent())\n\t\t},",
				},
			},
			"worker", "TestFarJournal",
		},
		{
			"a stall is never noticed", "a stalled worker says why",
			[]edit{{"worker/stall.go", "if now.Sub(w.lastProgress) >= patience {", "if now.Sub(w.lastProgress) >= patience && false {"}},
			"worker", "TestStall",
		},
	}
}

// handOverMutants release a partition too early, too late or incompletely.
func handOverMutants() []mutant {
	return []mutant{
		{
			"a handover does not wait for calls", "order for each user",
			[]edit{{"worker/deliver.go", "for p.busy > 0 || p.leaving > 0 && lost != nil {", "for p.leaving > 0 && lost != nil {"}},
			"worker", "TestHandOverWaitsForCalls",
		},
		{
			"a call that fails during a handover is still looked at", "a stalled worker says why",
			[]edit{{"worker/call.go", "\t\tl.transition(parked)\n\t\treturn\n", "\t\treturn\n"}},
			"worker", "TestFailureWhileRevoking",
		},
		{
			"a handover does not wait for settlements", "an event is delivered once where nothing fails",
			[]edit{{"worker/deliver.go", "for p.busy > 0 || p.leaving > 0 && lost != nil {", "for p.busy > 0 {"}},
			"worker", "TestHandOverWaitsForSettlements",
		},
		{
			"logging blocks until the line is written", "nothing blocks under a mutex",
			[]edit{{"queue/asynclog/asynclog.go", "\tif _, ok := log.Handler().(*handler); ok {", "\tif log != nil {"}},
			"worker", "TestStuckLog",
		},
		{
			"a dead letter is stored without a claim", "a dead letter is made exactly once",
			[]edit{{"worker/archive.go", "active, begun, id, first := p.claim.Active(), ", "active, begun, id, first := context.Background(), "}},
			"worker", "TestNoBurialWithoutClaim",
		},
		{
			"a settlement after the handover changes the memory count", "the memory is bounded",
			[]edit{{"worker/call.go", "\t\tif p.closed {\n\t\t\treturn\n\t\t}\n\t\tw.lastProgress", "\t\tw.lastProgress"}},
			"worker", "TestMemoryAfterLateSettlement",
		},
		{
			"an event that is gone is read again and again", "nothing waits forever",
			[]edit{
				{"worker/deliver.go", "p.claim.Fail(errors.Join(errors.New(\"an event could not be reloaded from the stream\"), err))", "w.log.Debug(\"not read again\", errAttr(errors.Join(err)))\n\t\ttime.AfterFunc(w.config.BackoffInitial, func() {\n\t\t\tw.mu.Lock()\n\t\t\tdefer w.mu.Unlock()\n\t\t\tw.load(l)\n\t\t})"},
				{"worker/deliver.go", "\t\"slices\"\n", "\t\"slices\"\n\t\"time\"\n"},
			},
			"worker", "TestBodyIsGone",
		},
		{
			"no events are let in while users are blocked", "nothing waits forever",
			[]edit{{"worker/deliver.go", "for w.isFull(d.Backfill) && len(w.blocked) == 0 {", "for w.isFull(d.Backfill) {"}},
			"worker", "TestBarredUsersFillTheMemory",
		},
		{
			"backfill overtakes live events", "live events first",
			[]edit{{"worker/lanequeue.go", "case both && q.due >= 1:", "case both:"}},
			"worker", "TestLateBackfill",
		},
		{
			"late backfill overwrites a newer property", "live events first",
			[]edit{{"worker/versions.go", "backfill = claim.Partition()", "_ = claim"}},
			"worker", "TestLateBackfill",
		},
		{
			"the record is dropped while backfill waits", "live events first",
			[]edit{{"queue/deadletter/backfill.go", "waiting := err != nil || len(work.State.Subjects) > 0; waiting", "err != nil || len(work.State.Subjects) > 1e9"}},
			"worker", "TestLateBackfill",
		},
		{
			"a stop waits until all bodies are reloaded", "a handover takes less than a second",
			[]edit{{"worker/deliver.go", "forEach(c.Active(), ", "forEach(c.Context(), "}, {"worker/crew.go", "group.SetLimit(requestsAtOnce)", "group.SetLimit(1)"}},
			"worker", "TestStopWhileReadingAgain/20ms",
		},
		{
			"all tasks run at once", "the load on the server does not grow with the lanes",
			[]edit{{"worker/crew.go", "if c.running < c.size {", "if true {"}},
			"worker", "TestCrew",
		},
	}
}
