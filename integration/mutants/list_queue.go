package main

// claimMutants let two replicas, or none, hold a partition.
func claimMutants() []mutant {
	return []mutant{
		{
			"the validity of a membership ignores the wall clock", "order for each user",
			[]edit{{"queue/validity.go", "return max(now.Sub(t.monotonic), now.Round(0).Sub(t.wall))", "return now.Sub(t.monotonic)"}},
			"queue", "TestCertainty$",
		},
		{
			"the validity of a membership counts from the answer", "order for each user",
			[]edit{{"queue/member.go", "m.validity.renew(begun)", "m.validity.renew(begun.Add(time.Since(begun)))"}},
			"queue", "TestCertaintyCountsFromTheRequest",
		},
		{
			"a holder missing from the last read is taken for dead", "order for each user",
			[]edit{{"queue/fleet.go", "if err := f.look(ctx); err != nil || f.membership", "if err := ctx.Err(); err != nil || f.membership"}},
			"queue", "TestLivingHolderWhomTheLastLookDidNotShow",
		},
		{
			"a stream recreated during a claim is taken for the old one", "nothing accepted is lost",
			[]edit{{"queue/fleet.go", "err == nil && !stream.CachedInfo().Created.Equal(created)", "err == nil && stream == nil"}},
			"queue", "TestStreamMadeAnewWhileItIsClaimed",
		},
		{
			"a partial read of the members counts", "no window holds more calls than the limit",
			[]edit{{"queue/membership.go", "\tif err != nil {\n\t\treturn false, err\n\t}\n\tfor id := range r.left {", "\tfor id := range r.left {"}},
			"queue", "TestRosterOfWhichAPartCannotBeRead",
		},
		{
			"the marker of a departed member stays", "the bucket does not grow",
			[]edit{{"queue/internal/jsapi/conn.go", "\tm.Header.Set(jetstream.MsgTTLHeader, ttl.String())\n", ""}},
			"queue", "TestMembersLeaveNothing",
		},
		{
			"the key of a dead member leaves a marker that looks like a key", "dead members are replaced within the TTL and 2 s",
			[]edit{{"queue/topology.go", "\t\tAllowDirect:       true,\n", "\t\tAllowDirect:       true,\n\t\tSubjectDeleteMarkerTTL: jsapi.MarkerTTL,\n"}},
			"queue", "TestIdleFleet",
		},
		{
			"a key that is not renewed is not noticed", "dead members are replaced",
			[]edit{{"queue/fleet.go", "changed, err := f.membership.readNext(ctx)", "changed, err := false, error(nil)"}},
			"queue", "TestFleetStuckKey",
		},
		{
			"a member joins without announcing its rate", "no window holds more calls than the limit",
			[]edit{{"queue/member.go", "\tm.notify(record)\n\treturn m, err", "\t_ = record\n\treturn m, err"}},
			"queue", "TestLowerRateIsHeardAtOnce",
		},
		{
			"an impossibly long cooldown is believed", "a cooldown stops the calls of the fleet",
			[]edit{{"queue/cooldown.go", "if err != nil || until.After(now.Add(cooldownTTL)) {", "if err != nil {"}},
			"queue", "TestQuietFarAhead",
		},
	}
}

// eventMutants lose events between the stream and the worker, or misread them.
func eventMutants() []mutant {
	return []mutant{
		{
			"a gap in the consumer's sequence is not noticed", "nothing accepted is lost",
			[]edit{{"queue/assignment.go", "if at.Consumer != t.next || at.Deliveries != 1 {", "if at.Deliveries != 1 {"}},
			"queue", "TestGapInTheConsumersSequence",
		},
		{
			"an event with a status header is taken for a status of the server", "nothing accepted is lost",
			[]edit{{"queue/internal/jsapi/pull.go", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") {", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") && m.Header.Get(\"Status\") == \"\" {"}},
			"queue", "TestEventThatLooksLikeAStatus/time-out",
		},
		{
			"a claim waits forever for an event that never comes", "one bad event harms no other user",
			[]edit{{"queue/assignment.go", "t.q.setbacks.hadGap(t.scope) && !t.fill", "false && !t.fill"}},
			"queue", "TestEventThatNeverComes/one",
		},
		{
			"missing events count as requested", "nothing waits forever",
			[]edit{{"queue/assignment.go", "p.Missed(t.next - due)", "_ = due"}},
			"queue", "TestPullAfterManyGaps",
		},
		{
			"a claim that never lasts is retried at once", "one bad event harms no other user",
			[]edit{{"queue/setback.go", "x.until = now.Add(setbackPause(x.times))", "x.until = now"}},
			"queue", "TestSetbacks",
		},
		{
			"one failing partition stops all", "one bad event harms no other user",
			[]edit{{"queue/fleet.go", "f.reserved() == 0 && !f.q.setbacks.stuck(allPartitions)", "f.reserved() == 0"}},
			"queue", "TestClaimThatNeverLasts",
		},
		{
			"a pull without heartbeats goes on", "nothing waits forever",
			[]edit{{"queue/internal/jsapi/pull.go", "if now.Sub(p.at) > 2*PullHeartbeat {", "if false {"}},
			"queue", "TestPullWithoutHeartbeat",
		},
		{
			"a settlement outlives its claim", "a handover takes less than a second",
			[]edit{{"queue/settlement.go", "case x.gone == len(x.deliveries), d.active.Err() != nil:", "case x.gone == len(x.deliveries):"}},
			"queue", "TestDeleterIsCutShort",
		},
		{
			"a partly settled merged call leaves the journal", "order for each user",
			[]edit{{"queue/claim.go", "if gone == len(ds) {", "if true {"}},
			"queue", "TestCutSettlementStaysInTheJournal",
		},
		{
			"an event counts as arrived before it is in its lane", "order for each user",
			[]edit{{"queue/assignment.go", "\th.Deliver(c, Delivery{", "\tc.Arrived(at.Stream)\n\th.Deliver(c, Delivery{"}},
			"worker", "TestReachIsInItsLane",
		},
		{
			"a recreated bucket of version records is not noticed", "a replay never overwrites newer data",
			[]edit{{"queue/deadletter/tracked_users.go", "if last.Sequence < g.seen {", "if false {"}},
			"queue/deadletter", "TestGuardOfABucketMadeAnew",
		},
		{
			"users count as untracked before the tracked users are read", "a replay never overwrites newer data",
			[]edit{{"worker/partition.go", "p.catchingUp || ", ""}},
			"worker", "TestTrackedUntilTheSetIsRead",
		},
		{
			"a late read undoes a later write", "a replay never overwrites newer data",
			[]edit{{"queue/deadletter/tracked_users.go", "else if _, newer := g.opened[key]; !newer {", "else {"}},
			"queue/deadletter", "TestGuardReadsLate",
		},
	}
}

// clockMutants ignore how inaccurate a replica's estimate of the server's clock is.
func clockMutants() []mutant {
	const promise = "no window holds more calls than the limit"
	return []mutant{
		{
			"a new owner of a shard does not wait for late calls of the last", promise,
			[]edit{{"queue/shard.go", "max(0, l.shards[i].record.Uncertainty-l.schedule.foreign) + m.Early", "m.Early"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"a new owner of a shard does not allow for its own early calls", promise,
			[]edit{{"queue/shard.go", "l.schedule.foreign) + m.Early + step", "l.schedule.foreign) + step"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"an owner does not record how late its calls can be", promise,
			[]edit{{"queue/reserve.go", "Uncertainty: r.clock.Late, Rate", "Rate"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"a step of the server's clock is not allowed for", promise,
			[]edit{{"queue/shard.go", "+ m.Early + step", "+ m.Early + 0*step"}},
			"queue", "TestShardOfAnOwnerBeforeAStep",
		},
		{
			"a clock that stopped while the machine slept is believed", promise,
			[]edit{
				{"queue/internal/jsapi/clock.go", "now.Sub(c.Last.Got) < maxPoorClockAge && !c.Last.slept(now)", "now.Sub(c.Last.Got) < maxPoorClockAge"},
			},
			"queue", "TestLedgerAfterSleep",
		},
	}
}

// ledgerMutants let a fleet exceed its limit.
func ledgerMutants() []mutant {
	const promise = "no window holds more calls than the limit"
	return []mutant{
		{
			"a slot is valid for longer than the distances allow", promise,
			[]edit{{"queue/reserve.go", "slotUntil(at.Add(p.schedule.late))", "slotUntil(at.Add(2*p.schedule.late))"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"the slots of a shard do not allow for late calls", promise,
			[]edit{{"queue/rate.go", "p.every[i] = r.span()/time.Duration(n) + 1", "p.every[i] = r.Window/time.Duration(n) + 1"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"a shard is overwritten", promise,
			[]edit{{"queue/reserve.go", "jsapi.CompareAndSet(ctx, r.kv, shardKey(b.shard), value, b.revision)", "r.kv.Put(ctx, shardKey(b.shard), value)"}},
			"queue", "TestLedgersRace",
		},
		{
			"slots that another replica reserved first are used", promise,
			[]edit{{"queue/ledger.go", "s.forget() // an unanswered write", "l.slots = append(l.slots, b.slots...)\n\t\ts.forget() // an unanswered write"}},
			"queue", "TestLedgersRace",
		},
		{
			"slots of a faster schedule are kept", promise,
			[]edit{{"queue/ledger.go", "l.schedule, l.slots = now, nil", "l.schedule = now"}},
			"queue", "TestLedgerDropsSlots",
		},
	}
}
