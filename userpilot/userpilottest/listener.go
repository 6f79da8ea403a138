package userpilottest

import (
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// listener is a Server's own socket.
type listener struct {
	http    *http.Server
	url     string
	serving sync.WaitGroup
}

// Start listens on a free port of 127.0.0.1 until [Server.Close]; see [Server.URL]. It
// must be called at most once, and not concurrently with URL and Close.
func (s *Server) Start() error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("stand-in: %w", err)
	}
	// No ReadTimeout and no WriteTimeout: a fault may make an answer take long, and a
	// ReadTimeout would end its request too.
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, MaxHeaderBytes: 64 << 10}
	s.listener.http, s.listener.url = server, "http://"+l.Addr().String()
	s.listener.serving.Go(func() { _ = server.Serve(l) })
	return nil
}

// URL returns the endpoint for clients; "" before Start.
func (s *Server) URL() string { return s.listener.url }

// Close closes all connections and stops listening. It keeps the profiles.
func (s *Server) Close() {
	if s.listener.http != nil {
		_ = s.listener.http.Close()
		s.listener.serving.Wait()
	}
}

// ServeHTTP serves the API over a socket. To cut the connection it panics with
// [http.ErrAbortHandler], which is how a handler does that.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := s.answer(r)
	if a.cut {
		panic(http.ErrAbortHandler)
	}
	header := w.Header()
	maps.Copy(header, a.header)
	if n := a.length(); n >= 0 {
		header.Set("Content-Length", strconv.FormatInt(n, 10))
	}
	w.WriteHeader(a.status)
	if a.ending == proper {
		_, _ = w.Write(a.body) // an error means that the client has gone
		return
	}
	body := a.stream(r.Context())
	defer body.cancel()
	if _, err := io.Copy(flusher{w}, body); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// flusher sends each piece at once, so that the client receives a trickled or cut answer
// as far as it goes.
type flusher struct{ http.ResponseWriter }

func (f flusher) Write(p []byte) (int, error) {
	n, err := f.ResponseWriter.Write(p)
	if err == nil {
		err = http.NewResponseController(f.ResponseWriter).Flush()
	}
	return n, err
}
