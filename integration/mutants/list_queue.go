package main

// claimMutants let two replicas, or none, hold a partition.
func claimMutants() []mutant {
	return []mutant{
		{
			"the wall clock is not asked how long a membership is certain", "order for each user",
			[]edit{{"queue/validity.go", "return max(now.Sub(t.monotonic), now.Round(0).Sub(t.wall))", "return now.Sub(t.monotonic)"}},
			"queue", "TestCertainty$",
		},
		{
			"a renewal counts from its answer", "order for each user",
			[]edit{{"queue/member.go", "m.validity.renew(begun)", "m.validity.renew(begun.Add(time.Since(begun)))"}},
			"queue", "TestCertaintyCountsFromTheRequest",
		},
		{
			"a holder is dead whom the last look did not show", "order for each user",
			[]edit{{"queue/fleet.go", "if err := f.look(ctx); err != nil || f.membership", "if err := ctx.Err(); err != nil || f.membership"}},
			"queue", "TestLivingHolderWhomTheLastLookDidNotShow",
		},
		{
			"a stream that is made anew while it is claimed is taken for the old one", "nothing accepted is lost",
			[]edit{{"queue/fleet.go", "err == nil && !stream.CachedInfo().Created.Equal(created)", "err == nil && stream == nil"}},
			"queue", "TestStreamMadeAnewWhileItIsClaimed",
		},
		{
			"half a view of the fleet counts", "no window holds more calls than the limit",
			[]edit{{"queue/membership.go", "\tif err != nil {\n\t\treturn false, err\n\t}\n\tfor id := range r.left {", "\tfor id := range r.left {"}},
			"queue", "TestRosterOfWhichAPartCannotBeRead",
		},
		{
			"a member that leaves is marked for ever", "the bucket does not grow",
			[]edit{{"queue/member.go", "\tm.Header.Set(jetstream.MsgTTLHeader, ttl.String())\n", ""}},
			"queue", "TestMembersLeaveNothing",
		},
		{
			"the key of a dead member leaves a marker, which looks like a key", "the dead are replaced within the TTL and 2 s",
			[]edit{{"queue/topology.go", "\t\tAllowDirect:       true,\n", "\t\tAllowDirect:       true,\n\t\tSubjectDeleteMarkerTTL: markerTTL,\n"}},
			"queue", "TestIdleFleet",
		},
		{
			"nobody looks whether a key is renewed", "the dead are replaced",
			[]edit{{"queue/fleet.go", "changed, err := f.membership.readNext(ctx)", "changed, err := false, error(nil)"}},
			"queue", "TestFleetStuckKey",
		},
		{
			"who joins tells nobody its rate", "no window holds more calls than the limit",
			[]edit{{"queue/member.go", "\tm.notify(record)\n\treturn m, err", "\t_ = record\n\treturn m, err"}},
			"queue", "TestLowerRateIsHeardAtOnce",
		},
		{
			"a pause that nobody can have asked for is believed", "a pause silences the fleet",
			[]edit{{"queue/cooldown.go", "if err != nil || until.After(now.Add(cooldownTTL)) {", "if err != nil {"}},
			"queue", "TestQuietFarAhead",
		},
	}
}

// eventMutants lose events between the stream and the worker, or take them for what they are not.
func eventMutants() []mutant {
	return []mutant{
		{
			"a gap in the consumer's sequence is overlooked", "nothing accepted is lost",
			[]edit{{"queue/assignment.go", "if at.consumer != t.next || at.deliveries != 1 {", "if at.deliveries != 1 {"}},
			"queue", "TestGapInTheConsumersSequence",
		},
		{
			"an event whose publisher wrote a status into it is taken for the server's word", "nothing accepted is lost",
			[]edit{{"queue/pull.go", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") {", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") && m.Header.Get(\"Status\") == \"\" {"}},
			"queue", "TestEventThatLooksLikeAStatus/time-out",
		},
		{
			"an event that comes to no claim is awaited for ever", "one bad event harms nobody else",
			[]edit{{"queue/assignment.go", "t.q.setbacks.hadGap(t.scope) && !t.fill", "false && !t.fill"}},
			"queue", "TestEventThatNeverComes/one",
		},
		{
			"events that did not come are taken for asked for", "nobody waits for ever",
			[]edit{{"queue/assignment.go", "p.missed(t.next - due)", "_ = due"}},
			"queue", "TestPullAfterManyGaps",
		},
		{
			"a claim that never lasts is made anew at once", "one bad event harms nobody else",
			[]edit{{"queue/setback.go", "x.until = now.Add(setbackPause(x.times))", "x.until = now"}},
			"queue", "TestSetbacks",
		},
		{
			"one partition's trouble is all partitions'", "one bad event harms nobody else",
			[]edit{{"queue/fleet.go", "f.reserved() == 0 && !f.q.setbacks.stuck(allPartitions)", "f.reserved() == 0"}},
			"queue", "TestClaimThatNeverLasts",
		},
		{
			"a pull without heartbeats goes on", "nobody waits for ever",
			[]edit{{"queue/pull.go", "if now.Sub(p.at) > 2*pullHeartbeat {", "if false {"}},
			"queue", "TestPullWithoutHeartbeat",
		},
		{
			"a settlement goes on after its claim", "a hand-over takes less than a second",
			[]edit{{"queue/settlement.go", "case x.gone == len(x.deliveries), d.active.Err() != nil:", "case x.gone == len(x.deliveries):"}},
			"queue", "TestDeleterIsCutShort",
		},
		{
			"a merged call that is settled in part is forgotten", "order for each user",
			[]edit{{"queue/claim.go", "if gone == len(ds) {", "if true {"}},
			"queue", "TestCutSettlementStaysInTheJournal",
		},
		{
			"an event has arrived before it is in its lane", "order for each user",
			[]edit{{"queue/assignment.go", "\th.Deliver(c, Delivery{", "\tc.Arrived(at.stream)\n\th.Deliver(c, Delivery{"}},
			"worker", "TestReachIsInItsLane",
		},
		{
			"a bucket of records that was made anew is not noticed", "a replay never overwrites newer data",
			[]edit{{"queue/tracked_users.go", "if last.Sequence < g.seen {", "if false {"}},
			"queue", "TestGuardOfABucketMadeAnew",
		},
		{
			"users are taken for untracked before the guard was read", "a replay never overwrites newer data",
			[]edit{{"queue/tracked_users.go", "(!c.informed.Load() || ", "("}},
			"queue", "TestGuardIsNotWaitedFor",
		},
		{
			"what is read late undoes what was written since", "a replay never overwrites newer data",
			[]edit{{"queue/tracked_users.go", "else if _, newer := g.opened[key]; !newer {", "else {"}},
			"queue", "TestGuardReadsLate",
		},
	}
}

// clockMutants forget how little a replica knows of the server's clock.
func clockMutants() []mutant {
	const promise = "no window holds more calls than the limit"
	return []mutant{
		{
			"who takes a shard over does not wait for the last owner's late calls", promise,
			[]edit{{"queue/shard.go", "max(0, l.shards[i].record.Uncertainty-l.schedule.foreign) + m.early", "m.early"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"who takes a shard over does not wait for its own early calls", promise,
			[]edit{{"queue/shard.go", "l.schedule.foreign) + m.early + step", "l.schedule.foreign) + step"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"an owner does not say how late its calls can be", promise,
			[]edit{{"queue/reserve.go", "Uncertainty: r.clock.late, Rate", "Rate"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"a step of the server's clock is not waited for", promise,
			[]edit{{"queue/shard.go", "+ m.early + step", "+ m.early + 0*step"}},
			"queue", "TestShardOfAnOwnerBeforeAStep",
		},
		{
			"a clock is believed that stood still while the machine slept", promise,
			[]edit{
				{"queue/clock.go", "now.Sub(c.last.got) < maxPoorClockAge && !c.last.slept(now)", "now.Sub(c.last.got) < maxPoorClockAge"},
			},
			"queue", "TestLedgerAfterSleep",
		},
	}
}

// ledgerMutants let a fleet call more often than it may.
func ledgerMutants() []mutant {
	const promise = "no window holds more calls than the limit"
	return []mutant{
		{
			"a slot is good for longer than the distances allow", promise,
			[]edit{{"queue/reserve.go", "slotUntil(at.Add(p.schedule.late))", "slotUntil(at.Add(2*p.schedule.late))"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"the slots of a shard are a window apart, without the lateness", promise,
			[]edit{{"queue/rate.go", "p.every[i] = r.span()/time.Duration(n) + 1", "p.every[i] = r.Window/time.Duration(n) + 1"}},
			"queue", "TestShardsHoldInEveryWindow",
		},
		{
			"a shard is written whatever has become of it", promise,
			[]edit{{"queue/reserve.go", "compareAndSet(ctx, r.kv, shardKey(b.shard), value, b.revision)", "r.kv.Put(ctx, shardKey(b.shard), value)"}},
			"queue", "TestLedgersRace",
		},
		{
			"slots are used that another replica was faster to reserve", promise,
			[]edit{{"queue/ledger.go", "s.forget() // an unanswered write", "l.slots = append(l.slots, b.slots...)\n\t\ts.forget() // an unanswered write"}},
			"queue", "TestLedgersRace",
		},
		{
			"slots of a faster pace are kept", promise,
			[]edit{{"queue/ledger.go", "l.schedule, l.slots = now, nil", "l.schedule = now"}},
			"queue", "TestLedgerDropsSlots",
		},
	}
}
