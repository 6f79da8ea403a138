package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// process is a child under test.
type process struct {
	cmd     *exec.Cmd
	done    chan struct{}
	err     error       // its exit error; set before done is closed
	killed  atomic.Bool // killed by us
	ending  atomic.Bool // got SIGTERM from us
	stopped sync.Mutex  // held while the process is stopped
}

// spawn starts a program and passes each line of its output to read. The program dies with ctx. It
// gets env, but little of our environment.
func spawn(ctx context.Context, read func(line []byte), env []string, program string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, program, args...), done: make(chan struct{})}
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.SysProcAttr = dyingWithParent()
	p.cmd.Cancel = func() error { return p.kill() }
	output, input := io.Pipe()
	p.cmd.Stdout, p.cmd.Stderr = input, input
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	go func() {
		lines := bufio.NewScanner(output)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			read(lines.Bytes())
		}
		_, _ = io.Copy(io.Discard, output)
	}()
	go func() {
		p.err = p.cmd.Wait()
		_ = input.Close()
		close(p.done)
	}()
	return p, nil
}

// kill ends it with SIGKILL, even if it is frozen.
func (p *process) kill() error {
	p.killed.Store(true)
	return p.cmd.Process.Kill()
}

func (p *process) freeze() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) thaw()   { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// starve gives it a tenth of the time, until ctx ends, like a container whose CPU quota is used up
// in the first hundredth of a second of each tenth. It needs no privileges and no cgroup.
func (p *process) starve(ctx context.Context) {
	const period = 100 * time.Millisecond
	for ctx.Err() == nil {
		p.freeze()
		pause(ctx, period*9/10)
		p.thaw()
		pause(ctx, period/10)
	}
}

// term sends SIGTERM and waits for the exit. A process that takes too long is killed.
func (p *process) term(patience time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.kill()
		<-p.done
		return fmt.Errorf("it did not end within %v of SIGTERM", patience)
	}
	if p.err != nil && !p.killed.Load() {
		return fmt.Errorf("after SIGTERM: %w", p.err)
	}
	return nil
}
