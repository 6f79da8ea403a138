package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
)

// roles are the roles of a child process.
func roles() map[string]func(ctx context.Context, args []string) error {
	return map[string]func(context.Context, []string) error{
		"serve-nats": serveNATS,
		"serve-api":  serveAPI,
		"work":       work,
		"loop":       loop,
		"idle":       idle,
		"letters":    letters,
	}
}

// attach ends the child's context when its standard input ends, so that no child outlives its
// parent, however the parent dies.
func attach(ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return ctx
}

// process is a child. It reports to its parent in lines on standard output; the first says that it
// is ready.
type process struct {
	role   string
	cmd    *exec.Cmd
	stdin  io.Closer
	lines  chan string
	errors bytes.Buffer // standard error; valid once done is closed
	done   chan struct{}
	err    error       // set before done is closed
	asked  atomic.Bool // we have asked it to end
	cut    atomic.Bool // killed because its context has ended
}

// spawn starts this program in a role. The child is killed when ctx ends. spawn calls died if the
// child ends without being asked to.
func spawn(ctx context.Context, died func(error), role string, args ...string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &process{role: role, lines: make(chan string, 1024), done: make(chan struct{})}
	p.cmd = exec.CommandContext(ctx, self, append([]string{role}, args...)...)
	p.cmd.Stderr = &p.errors
	p.cmd.Cancel = func() error {
		p.cut.Store(true)
		return p.cmd.Process.Kill()
	}
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", role, err)
	}
	go p.read(stdout, died)
	return p, nil
}

func (p *process) read(stdout io.Reader, died func(error)) {
	scanner := bufio.NewScanner(stdout)
	for scanner.Scan() {
		p.lines <- scanner.Text()
	}
	p.err = p.cmd.Wait()
	close(p.done)
	if !p.asked.Load() && !p.cut.Load() {
		died(p.ended())
	}
}

// line returns the child's next line. It blocks until there is one, or ctx ends, as it does when
// the child dies.
func (p *process) line(ctx context.Context) (string, error) {
	select {
	case line := <-p.lines:
		return line, nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// latest returns the last line that the child has printed by now, or known if there is no new one.
func (p *process) latest(known string) string {
	for {
		select {
		case known = <-p.lines:
		default:
			return known
		}
	}
}

// ended returns the error of a child that should be running and is not.
func (p *process) ended() error {
	return fmt.Errorf("%s has ended: %w\n%s", p.role, cmp.Or(p.err, errors.New("status 0")), p.errors.Bytes())
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// dismiss asks the child to end, and does not wait.
func (p *process) dismiss() {
	p.asked.Store(true)
	_ = p.stdin.Close()
}

// stop asks the child to end and waits for it.
func (p *process) stop() error {
	p.dismiss()
	<-p.done
	if p.err != nil && !p.cut.Load() {
		return p.ended()
	}
	return nil
}

// signal sends a signal that should end the child, and does not wait.
func (p *process) signal(s os.Signal) error {
	p.asked.Store(true)
	return p.cmd.Process.Signal(s)
}
