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
	err     error       // of its end; set before done is closed
	doomed  atomic.Bool // killed
	leaving atomic.Bool // asked to end
	stopped sync.Mutex  // held by who stops it and lets it go on
}

// spawn starts a program and gives each line of its output to read. It dies with ctx. Of our
// environment it gets little, and env besides.
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

// kill ends it as a crash does, even if it is frozen.
func (p *process) kill() error {
	p.doomed.Store(true)
	return p.cmd.Process.Kill()
}

func (p *process) freeze() { _ = p.cmd.Process.Signal(syscall.SIGSTOP) }
func (p *process) thaw()   { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// starve lets it have a tenth of the time, until ctx ends: as one whose quota of a CPU is used up
// in the first hundredth of a second of each tenth. It asks for no right and no control group.
func (p *process) starve(ctx context.Context) {
	const period = 100 * time.Millisecond
	for ctx.Err() == nil {
		p.freeze()
		pause(ctx, period*9/10)
		p.thaw()
		pause(ctx, period/10)
	}
}

// term asks it to end, and waits for that. It is killed if it takes too long.
func (p *process) term(patience time.Duration) error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.kill()
		<-p.done
		return fmt.Errorf("it had not ended %v after SIGTERM", patience)
	}
	if p.err != nil && !p.doomed.Load() {
		return fmt.Errorf("after SIGTERM: %w", p.err)
	}
	return nil
}
