// Package doctor is the command doctor, which checks whether a worker could work where it runs.
package doctor

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/userpilot"
)

// New returns the command doctor.
func New(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether a worker could work here, and what to do if not",
		Long: `Check from this place, with the flags and the environment of work, whether a worker could
work: put doctor where work stands. It changes nothing, and can run beside workers.

Each check is a line: ok, warn or FAIL, and what to do.
  nats        the connection, and the round trip, the middle of five
  nats_tls    its TLS, and when the server's certificate expires
  max_payload whether the server takes events of every size
  rights      what the user may do, tried one by one; a missing right is named
  streams     whether they are there and as they should be
  strict      whether the servers refuse requests that they do not wholly understand
  limits      how near they are to their limits, and dead letters to their end
  storage     how near the NATS account is to its limits
  clock       this machine's against the server's, and those of a cluster's servers, as far
              as they lead a stream now, against one another
  rate        the most calls in any window, and how much of the limit can be used
  round_trip  how much of the limit can be used at that distance from NATS
  api         DNS, address, connection and TLS of --endpoint
  api_tls     when its certificate expires
  key         what GET /v1/validate says of the key: valid, invalid, or nothing
  traces      whether the OTLP collector takes spans, where the environment names one
  workers     those that are alive, what is wrong with them, and where they differ from
              one another and from these flags

Exit status: 1 if anything has failed, 0 otherwise. With --json it prints one object:
  failed and warned, two counts,
  checks [{check, level, text}]; the level is ok, warn or fail. A check may be there
  several times, and is not there if it was not made.`,
		Example: `  USERPILOT_API_KEY=... identify-worker doctor
  identify-worker doctor --nats-url nats://nats:4222 --api-key-file /run/secrets/userpilot
  identify-worker doctor --json | jq -r '.checks[] | select(.level != "ok") | .text'`,
		Args: cobra.NoArgs,
	}
	f := flags.Set{Cmd: cmd}
	d := &doctor{env: env, key: flags.NewKeySource(f, env.Getenv)}
	d.conn = flags.NewConnection(f)
	// A worker waits for ever where nobody says otherwise; a check should not.
	d.conn.AddWait(flags.Set{Cmd: cmd, Prefix: "DOCTOR_"}, "wait", 0)
	d.topology = flags.NewTopology(f)
	d.replica = flags.NewReplica(f)
	logs := flags.NewLogSettings(f)
	asJSON := false
	f.Toggle(&asJSON, "json", "print JSON")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		e := &examination{}
		if !asJSON {
			e.out = env.Stdout
		}
		if err := d.run(cmd.Context(), e, env.Logger(logs, env.Stderr)); err != nil {
			return err
		}
		if asJSON {
			if err := e.printJSON(env.Stdout); err != nil {
				return err
			}
		}
		return e.verdict()
	}
	return cmd
}

// doctor has the settings that a worker would be started with.
type doctor struct {
	env      *flags.Env
	key      *flags.KeySource
	conn     *flags.Connection
	topology *queue.Topology
	replica  *flags.Replica
}

// run makes all checks. It returns an error only for wrong flags; everything else is a finding in
// e.
func (d *doctor) run(ctx context.Context, e *examination, log *slog.Logger) error {
	if err := flags.CheckTopology(d.topology); err != nil {
		return err
	}
	client, errKey, err := d.client()
	if err != nil {
		return err
	}
	var n natsFindings
	q, nc, err := d.conn.Open(ctx, *d.topology, log)
	if err != nil {
		e.fail("nats", "%v", err)
	} else {
		defer nc.Close()
		nc.SetErrorHandler(nil) // rights are tried, and what is missing is said here
		n = d.askNATS(ctx, e, q)
	}
	c := d.replica.Config
	e.checkRate(c.Rate, c.Burst, d.replica.PerReplica(), n.trip)
	if errKey != nil {
		e.fail("key", "%v", errKey)
		e.warn("api", "not tried without a key")
	} else {
		d.askAPI(ctx, e, client)
	}
	d.askCollector(ctx, e)
	switch {
	case n.readable:
		d.askFleet(ctx, e, q, client)
	case err == nil:
		e.warn("workers", "not looked at before the rights and the streams are right")
	}
	return nil
}

// client makes the client that a worker would use. If there is no key, errKey says so: the other
// settings have been checked, but the client is of no use.
func (d *doctor) client() (client *userpilot.Client, errKey, err error) {
	key, errKey := d.key.Read()
	if errKey != nil {
		if key, err = userpilot.NewKey("none"); err != nil {
			return nil, errKey, err
		}
	}
	client, err = d.replica.ClientWith(key)
	return client, errKey, err
}

// natsFindings is what later checks need to know about NATS.
type natsFindings struct {
	trip     time.Duration // to NATS and back; 0 if it is not known
	readable bool          // the streams can be read
}

// askNATS makes the checks that need only NATS.
func (d *doctor) askNATS(ctx context.Context, e *examination, q *queue.Queue) (n natsFindings) {
	link, err := q.ConnInfo()
	if err != nil {
		e.fail("nats", "%v", err)
		return n
	}
	n.trip = link.Trip
	e.checkLink(link)
	denied, err := q.MissingPermissions(ctx)
	e.checkRights(denied, len(d.topology.WorkerRights()), err)
	streams, err := q.InspectStreams(ctx)
	if err != nil {
		e.fail("streams", "%v: start it with JetStream, and let the account use it", err)
		return n
	}
	e.checkStreams(streams)
	e.checkLimits(streams)
	missing, unread := 0, 0
	for _, s := range streams {
		if s.Missing {
			missing++
		}
		if s.Err != nil {
			unread++
		}
	}
	account, err := q.Account(ctx)
	e.checkAccount(account, missing, err)
	if missing+unread > 0 {
		return n
	}
	strict, err := q.Strict(ctx)
	e.checkStrict(strict, err)
	clock, err := q.ReadClock(ctx)
	if err != nil {
		e.warn("clock", "cannot be compared: %v", err)
		return n
	}
	e.checkClock(clock)
	return natsFindings{trip: link.Trip, readable: !e.failed("rights")}
}

// askFleet checks the live workers.
func (d *doctor) askFleet(ctx context.Context, e *examination, q *queue.Queue, client *userpilot.Client) {
	status, err := q.Progress(ctx)
	if err != nil {
		e.fail("workers", "%v", err)
		return
	}
	own := queue.Replica{Version: d.env.Version, Rate: d.replica.Config.Rate}
	if d.replica.PerReplica() {
		own.Rate, own.OwnRate = queue.Rate{}, own.Rate
	}
	if !e.failed("key") {
		own.Key = client.KeyFingerprint()
	}
	e.checkFleet(status, own)
}
