package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

// server is the NATS server under test. It keeps its store and its port across restarts.
type server struct {
	program string
	dir     string
	address string
	died    func(error)

	mu   sync.Mutex
	is   *process
	last []byte // line of its log
}

// newServer chooses a port that no outgoing connection takes while the server is down.
func newServer(program, dir string, died func(error)) (*server, error) {
	for range 100 {
		address := net.JoinHostPort("127.0.0.1", strconv.Itoa(15000+rand.IntN(15000)))
		if l, err := net.Listen("tcp", address); err == nil {
			_ = l.Close()
			return &server{program: program, dir: dir, address: address, died: died}, nil
		}
	}
	return nil, fmt.Errorf("no port is free for the NATS server")
}

func (s *server) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	host, port, _ := net.SplitHostPort(s.address)
	p, err := spawn(ctx, s.read, nil, s.program, "-a", host, "-p", port, "-js", "-sd", s.dir)
	if err != nil {
		return err
	}
	s.is = p
	go func() {
		<-p.done
		if !p.killed.Load() && ctx.Err() == nil {
			s.died(fmt.Errorf("the NATS server ended by itself: %w: %s", p.err, s.last))
		}
	}()
	return nil
}

func (s *server) read(line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last = append(s.last[:0], line...)
}

// crash kills the server and waits until it is gone.
func (s *server) crash() {
	p := s.process()
	_ = p.kill()
	<-p.done
}

func (s *server) process() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.is
}

// freeze stops the server for a while.
func (s *server) freeze(ctx context.Context, d time.Duration) {
	p := s.process()
	p.freeze()
	pause(ctx, d)
	p.thaw()
}
