package main

// claimMutants let two replicas, or none, hold a partition.
func claimMutants() []mutant {
	return []mutant{
		{
			"the validity of a membership ignores the wall clock", "order for each user",
			[]edit{{"queue/fleet/validity.go", "return max(now.Sub(t.monotonic), now.Round(0).Sub(t.wall))", "return now.Sub(t.monotonic)"}},
			"queue/fleet", "TestCertainty$",
		},
		{
			"the validity of a membership counts from the answer", "order for each user",
			[]edit{{"queue/fleet/member.go", "m.validity.renew(begun)", "m.validity.renew(begun.Add(time.Since(begun)))"}},
			"queue/fleet", "TestCertaintyCountsFromTheRequest",
		},
		{
			"a holder missing from the last read is taken for dead", "order for each user",
			[]edit{{"queue/fleet/reconciler.go", "if err := f.look(ctx); err != nil || f.membership", "if err := ctx.Err(); err != nil || f.membership"}},
			"queue/fleet", "TestLivingHolderWhomTheLastLookDidNotShow",
		},
		{
			"a stream recreated during a claim is taken for the old one", "nothing accepted is lost",
			[]edit{{"queue/fleet/reconciler.go", "err == nil && !stream.CachedInfo().Created.Equal(created)", "err == nil && stream == nil"}},
			"queue/fleet", "TestStreamMadeAnewWhileItIsClaimed",
		},
		{
			"a partial read of the members counts", "no window holds more calls than the limit",
			[]edit{{"queue/fleet/membership.go", "\tif err != nil {\n\t\treturn false, err\n\t}\n\tfor id := range r.left {", "\tfor id := range r.left {"}},
			"queue/fleet", "TestRosterOfWhichAPartCannotBeRead",
		},
		{
			"the marker of a departed member stays", "the bucket does not grow",
			[]edit{{"queue/internal/jsapi/conn.go", "\tm.Header.Set(jetstream.MsgTTLHeader, ttl.String())\n", ""}},
			"queue/fleet", "TestMembersLeaveNothing",
		},
		{
			"the key of a dead member leaves a marker that looks like a key", "dead members are replaced within the TTL and 2 s",
			[]edit{{"queue/topology.go", "\t\tAllowDirect:       true,\n", "\t\tAllowDirect:       true,\n\t\tSubjectDeleteMarkerTTL: jsapi.MarkerTTL,\n"}},
			"queue/fleet", "TestIdleFleet",
		},
		{
			"a key that is not renewed is not noticed", "dead members are replaced",
			[]edit{{"queue/fleet/reconciler.go", "changed, err := f.membership.readNext(ctx)", "changed, err := false, error(nil)"}},
			"queue/fleet", "TestFleetStuckKey",
		},
		{
			"a member joins without announcing its rate", "no window holds more calls than the limit",
			[]edit{{"queue/fleet/member.go", "\tm.notify(record)\n\tm.log.Info(", "\t_ = record\n\tm.log.Info("}},
			"queue/fleet", "TestLowerRateIsHeardAtOnce",
		},
		{
			"an impossibly long cooldown is believed", "a cooldown stops the calls of the fleet",
			[]edit{{"queue/ratelimit/cooldown.go", "if err != nil || until.After(now.Add(cooldownTTL)) {", "if err != nil {"}},
			"queue/fleet", "TestQuietFarAhead",
		},
	}
}

// liveMutants make live events wait for backfill.
func liveMutants() []mutant {
	const promise = "live events first"
	return []mutant{
		{
			"live calls take no slots of replicas with backfill", promise,
			[]edit{{"queue/ratelimit/reserve.go", "if p.live == 0 || !p.othersHaveBackfill() {", "if p.live >= 0 {"}},
			"queue/ratelimit", "TestLiveTakesTheSlotsOfBackfill",
		},
		{
			"a replica that takes a slot for a live call keeps the shard", promise,
			[]edit{{"queue/ratelimit/reserve.go", "b.record.Owner, b.record.Backfill, b.borrowed = s.record.Owner, true, true", "b.borrowed = true"}},
			"queue/ratelimit", "TestLiveTakesTheSlotsOfBackfill",
		},
		{
			"a replica with live events alone lends its slots", promise,
			[]edit{{"worker/token.go", "Live: w.ready.live.len() + pendingLive}", "Live: w.ready.live.len() + min(1, pendingLive)}"}},
			"worker", "TestLiveReplicaLendsNoSlots",
		},
	}
}

// eventMutants lose events between the stream and the worker, or misread them.
func eventMutants() []mutant {
	return []mutant{
		{
			"a gap in the consumer's sequence is not noticed", "nothing accepted is lost",
			[]edit{{"queue/fleet/feed.go", "if at.Consumer != f.next || at.Deliveries != 1 {", "if at.Deliveries != 1 {"}},
			"queue/fleet", "TestGapInTheConsumersSequence",
		},
		{
			"an event with a status header is taken for a status of the server", "nothing accepted is lost",
			[]edit{{"queue/internal/jsapi/pull.go", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") {", "if strings.HasPrefix(m.Reply, \"$JS.ACK.\") && m.Header.Get(\"Status\") == \"\" {"}},
			"queue/fleet", "TestEventThatLooksLikeAStatus/time-out",
		},
		{
			"a claim waits forever for an event that never comes", "one bad event harms no other user",
			[]edit{{"queue/fleet/feed.go", "f.q.setbacks.hadGap(f.scope) && !f.fill", "false && !f.fill"}},
			"queue/fleet", "TestEventThatNeverComes/one",
		},
		{
			"missing events count as requested", "nothing waits forever",
			[]edit{{"queue/fleet/feed.go", "p.Missed(f.next - due)", "_ = due"}},
			"queue/fleet", "TestPullAfterManyGaps",
		},
		{
			"a claim that never lasts is retried at once", "one bad event harms no other user",
			[]edit{{"queue/fleet/setback.go", "x.until = now.Add(setbackPause(x.times))", "x.until = now"}},
			"queue/fleet", "TestSetbacks",
		},
		{
			"one failing partition stops all", "one bad event harms no other user",
			[]edit{{"queue/fleet/reconciler.go", "f.reserved() == 0 && !f.q.setbacks.stuck(allPartitions)", "f.reserved() == 0"}},
			"queue/fleet", "TestClaimThatNeverLasts",
		},
		{
			"a second replica makes the first share what only one consumer can hold", "nothing waits forever",
			[]edit{{"queue/fleet/reconciler.go", "case f.tooFewConsumers():", "case false:"}},
			"queue/fleet", "TestFleetFewConsumers",
		},
		{
			"a pull without heartbeats goes on", "nothing waits forever",
			[]edit{{"queue/internal/jsapi/pull.go", "if now.Sub(p.at) > 2*PullHeartbeat {", "if false {"}},
			"queue/fleet", "TestPullWithoutHeartbeat",
		},
		{
			"a settlement outlives its claim", "a handover takes less than a second",
			[]edit{{"queue/fleet/settlement.go", "case x.gone == len(x.deliveries), d.active.Err() != nil:", "case x.gone == len(x.deliveries):"}},
			"queue/fleet", "TestDeleterIsCutShort",
		},
		{
			"a partly settled merged call leaves the journal", "order for each user",
			[]edit{{"queue/fleet/claim.go", "if gone == len(ds) {", "if true {"}},
			"queue/fleet", "TestCutSettlementStaysInTheJournal",
		},
		{
			"an event counts as arrived before it is in its lane", "order for each user",
			[]edit{{"queue/fleet/feed.go", "\th.Deliver(c, Delivery{", "\tc.Arrived(Delivery{Sequence: at.Stream, Backfill: backfill})\n\th.Deliver(c, Delivery{"}},
			"worker", "TestReachIsInItsLane",
		},
		{
			"a foreign acknowledgement counts", "nothing accepted is lost",
			[]edit{{"queue/internal/jsapi/foreign.go", "case gotStream != stream:", "case gotStream == \"\":"}},
			"queue/inspector", "TestReplayStreamTrouble/another_stream",
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
			[]edit{{"queue/ratelimit/shard.go", "max(0, l.shards[i].record.Uncertainty-l.schedule.foreign) + m.Early", "m.Early"}},
			"queue/ratelimit", "TestShardsHoldInEveryWindow",
		},
		{
			"a new owner of a shard does not allow for its own early calls", promise,
			[]edit{{"queue/ratelimit/shard.go", "l.schedule.foreign) + m.Early + step", "l.schedule.foreign) + step"}},
			"queue/ratelimit", "TestShardsHoldInEveryWindow",
		},
		{
			"an owner does not record how late its calls can be", promise,
			[]edit{{"queue/ratelimit/reserve.go", "Uncertainty: r.clock.Late, Rate", "Rate"}},
			"queue/ratelimit", "TestShardsHoldInEveryWindow",
		},
		{
			"a step of the server's clock is not allowed for", promise,
			[]edit{{"queue/ratelimit/shard.go", "+ m.Early + step", "+ m.Early + 0*step"}},
			"queue/ratelimit", "TestShardOfAnOwnerBeforeAStep",
		},
		{
			"a clock that stopped while the machine slept is believed", promise,
			[]edit{
				{"queue/internal/jsapi/clock.go", "now.Sub(c.last.Got) < maxPoorClockAge && !c.last.slept(now)", "now.Sub(c.last.Got) < maxPoorClockAge"},
			},
			"queue/ratelimit", "TestLedgerAfterSleep",
		},
	}
}

// ledgerMutants let a fleet exceed its limit.
func ledgerMutants() []mutant {
	const promise = "no window holds more calls than the limit"
	return []mutant{
		{
			"a slot is valid for longer than the distances allow", promise,
			[]edit{{"queue/ratelimit/reserve.go", "slotUntil(at.Add(p.schedule.late))", "slotUntil(at.Add(2*p.schedule.late))"}},
			"queue/ratelimit", "TestShardsHoldInEveryWindow",
		},
		{
			"the slots of a shard do not allow for late calls", promise,
			[]edit{{"queue/ratelimit/rate.go", "p.every[i] = r.span()/time.Duration(n) + 1", "p.every[i] = r.Window/time.Duration(n) + 1"}},
			"queue/ratelimit", "TestShardsHoldInEveryWindow",
		},
		{
			"a shard is overwritten", promise,
			[]edit{{"queue/ratelimit/reserve.go", "jsapi.CompareAndSet(ctx, r.kv, shardKey(b.shard), value, b.revision)", "r.kv.Put(ctx, shardKey(b.shard), value)"}},
			"queue/ratelimit", "TestLedgersRace",
		},
		{
			"slots that another replica reserved first are used", promise,
			[]edit{{"queue/ratelimit/ledger.go", "s.forget() // an unanswered write", "l.slots = append(l.slots, b.slots...)\n\t\ts.forget() // an unanswered write"}},
			"queue/ratelimit", "TestLedgersRace",
		},
		{
			"slots of a faster schedule are kept", promise,
			[]edit{{"queue/ratelimit/ledger.go", "l.schedule, l.slots = now, nil", "l.schedule = now"}},
			"queue/ratelimit", "TestLedgerDropsSlots",
		},
		{
			"a stop returns slots before another replica's", promise,
			[]edit{{"queue/ratelimit/shard.go", "return s.owned() && !s.first.IsZero() && !begin.Before(s.first)", "return s.owned()"}},
			"queue/ratelimit", "TestLedgerCloseKeepsSlotsBeforeOthers",
		},
	}
}
