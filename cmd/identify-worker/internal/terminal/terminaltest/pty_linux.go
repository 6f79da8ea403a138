package terminaltest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"
)

// Patience is how long a test waits for a text; nothing takes as long where all is well.
const Patience = time.Minute

// Terminal is a pseudo-terminal, and all that was written to it.
type Terminal struct {
	Slave  *os.File // the terminal of a program
	master *os.File

	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

// New makes a terminal of that width.
func New(t *testing.T, columns int) *Terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Skip("this system has no pseudo-terminals: ", err)
	}
	var number, unlock uint32
	control(t, master, syscall.TIOCGPTN, unsafe.Pointer(&number))
	control(t, master, syscall.TIOCSPTLCK, unsafe.Pointer(&unlock))
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &Terminal{Slave: slave, master: master, changed: make(chan struct{}, 1)}
	term.Resize(t, columns)
	var reading sync.WaitGroup
	reading.Go(term.read)
	t.Cleanup(func() { _ = slave.Close(); term.Lose(); reading.Wait() })
	return term
}

func control(t *testing.T, f *os.File, request uintptr, argument unsafe.Pointer) {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var errno syscall.Errno
	if err := raw.Control(func(fd uintptr) { _, _, errno = syscall.Syscall(syscall.SYS_IOCTL, fd, request, uintptr(argument)) }); err != nil || errno != 0 {
		t.Fatal(err, errno)
	}
}

// Resize changes the width.
func (p *Terminal) Resize(t *testing.T, columns int) {
	t.Helper()
	size := [4]uint16{24, uint16(columns)}
	if columns == 0 {
		size[0] = 0
	}
	control(t, p.master, syscall.TIOCSWINSZ, unsafe.Pointer(&size))
}

// Lose closes the terminal, as when a window is closed or a connection breaks.
func (p *Terminal) Lose() { _ = p.master.Close() }

func (p *Terminal) read() {
	buffer := make([]byte, 4096)
	for {
		n, err := p.master.Read(buffer)
		p.mu.Lock()
		p.text.Write(buffer[:n])
		p.mu.Unlock()
		select {
		case p.changed <- struct{}{}:
		default:
		}
		if err != nil {
			return
		}
	}
}

// Shown returns all that was written to the terminal so far.
func (p *Terminal) Shown() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.ReplaceAll(p.text.String(), "\r\n", "\n")
}

// Await waits until the terminal has shown a text.
func (p *Terminal) Await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.After(Patience); !strings.Contains(p.Shown(), text); {
		select {
		case <-p.changed:
		case <-deadline:
			t.Fatalf("the terminal does not show %q:\n%q", text, p.Shown())
		}
	}
}

// Type types a text.
func (p *Terminal) Type(t *testing.T, text string) {
	t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// Start starts a program of which it is the terminal: it gets SIGHUP when the terminal is lost.
func (p *Terminal) Start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.Slave, p.Slave, p.Slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// Status waits until a program has ended, and returns its exit status.
func Status(t *testing.T, cmd *exec.Cmd) int {
	t.Helper()
	err := cmd.Wait()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode()
}
