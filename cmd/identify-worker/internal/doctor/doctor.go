// Package doctor is the command doctor, which checks whether a worker could work where it runs.
package doctor

import (
	"context"
	"log/slog"
	"time"

	"github.com/spf13/cobra"

	"github.com/identify-worker/identify-worker/cmd/identify-worker/internal/flags"
	"github.com/identify-worker/identify-worker/queue"
	"github.com/identify-worker/identify-worker/queue/fleet"
	"github.com/identify-worker/identify-worker/queue/inspector"
	"github.com/identify-worker/identify-worker/queue/ratelimit"
	"github.com/identify-worker/identify-worker/userpilot"
	"github.com/identify-worker/identify-worker/worker"
)

const help = `Check whether a worker can run here: use the machine, the flags and the environment of the
work command, with doctor in its place. It changes nothing and can run beside workers.

Each check prints a line with ok, warn or FAIL, and what to do.
  nats        the connection, and the median round trip of five
  nats_tls    TLS of that connection, and when the server's certificate expires
  max_payload whether the server accepts events of every size
  rights      the permissions of the user, probed one by one; missing ones are named
  streams     whether the streams exist and are configured as expected
  strict      whether the servers reject requests with unknown fields
  limits      how close streams are to their limits, and dead letters to their expiry
  storage     how close the NATS account is to its limits
  clock       this machine's clock against the server's; in a cluster, the clocks of the
              servers that currently lead a stream against one another
  rate        the maximum calls in any window, and how much of the limit can be used
  round_trip  how much of the limit can be used at this distance from NATS
  api         DNS, address, connection and TLS of --endpoint
  api_tls     when the endpoint's certificate expires
  key         whether GET /v1/validate reports the key as valid, invalid, or neither
  traces      whether the OTLP collector accepts spans, if the environment names one
  workers     the replicas that are alive, their problems, and where they differ from one
              another and from these flags

Exit status: 1 if a check has failed, 0 otherwise. With --json it prints one object:
  failed and warned, two counts,
  checks [{check, level, text}]; the level is ok, warn or fail. A check may appear
  several times, and is absent if it was not made.`

// New returns the command doctor.
func New(env *flags.Env) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether a worker can run here, and say what to fix",
		Long:  help,
		Example: `  USERPILOT_API_KEY=... identify-worker doctor
  identify-worker doctor --nats-url nats://nats:4222 --api-key-file /run/secrets/userpilot
  identify-worker doctor --json | jq -r '.checks[] | select(.level != "ok") | .text'`,
		Args: cobra.NoArgs,
	}
	f := flags.Set{Cmd: cmd}
	d := &doctor{env: env, key: flags.NewKeySource(f, env.Getenv)}
	d.conn = flags.NewConnection(f)
	// A worker waits forever by default; a check should not.
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
	client, errKey, err := d.client(e)
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
		e.warn("api", "skipped until the key passes")
	} else {
		d.askAPI(ctx, e, client)
	}
	d.askCollector(ctx, e)
	switch {
	case n.readable:
		d.askFleet(ctx, e, q, client)
	case err == nil:
		e.warn("workers", "skipped until rights and streams pass")
	}
	return nil
}

// client makes the client that a worker would use. If there is no key, errKey says so: the other
// settings have been checked, but the client is of no use.
func (d *doctor) client(e *examination) (client *userpilot.Client, errKey, err error) {
	key, errKey := d.key.Read()
	if errKey != nil {
		if key, err = userpilot.NewKey("none"); err != nil {
			return nil, errKey, err
		}
	}
	if key.LooksLikeAppToken() {
		e.warn("key", "%s %s: see %s and --api-key-file", key.Fingerprint(), flags.AppTokenHint, flags.KeyVariable)
	}
	client, err = d.replica.ClientWith(key)
	return client, errKey, err
}

// natsFindings is what later checks need to know about NATS.
type natsFindings struct {
	trip     time.Duration // to NATS and back; 0 if it is not known
	readable bool          // the streams can be read, or those that are not missing
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
	if e.failed("nats") {
		return n // an old server has streams that differ, whatever is done about them
	}
	denied, err := inspector.New(q).MissingPermissions(ctx, worker.Permissions(*d.topology))
	e.checkRights(denied, len(worker.Permissions(*d.topology)), err)
	streams, err := inspector.New(q).InspectStreams(ctx)
	if err != nil {
		e.fail("streams", "%v: enable JetStream on the server and for the account", err)
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
	account, err := inspector.New(q).Account(ctx)
	e.checkConsumers(streams, account.MaxConsumers, len(q.Topology().PartitionNames()))
	e.checkAccount(account, missing, err)
	// What is left of the streams is enough to tell how the workers are.
	n.readable = missing < len(streams) && unread == 0 && !e.failed("rights")
	if missing+unread > 0 {
		return n
	}
	strict, err := inspector.New(q).Strict(ctx)
	e.checkStrict(strict, err)
	clock, err := inspector.New(q).ReadClock(ctx)
	if err != nil {
		e.warn("clock", "cannot be compared: %v", err)
		return n
	}
	e.checkClock(clock)
	return n
}

// askFleet checks the live workers.
func (d *doctor) askFleet(ctx context.Context, e *examination, q *queue.Queue, client *userpilot.Client) {
	status, err := inspector.New(q).Progress(ctx)
	if err != nil {
		e.fail("workers", "%v", err)
		return
	}
	own := fleet.Replica{Version: d.env.Version, Rate: d.replica.Config.Rate}
	if d.replica.PerReplica() {
		own.Rate, own.OwnRate = ratelimit.Rate{}, own.Rate
	}
	if !e.failed("key") {
		own.Key = client.KeyFingerprint()
	}
	e.checkFleet(status, own)
}
