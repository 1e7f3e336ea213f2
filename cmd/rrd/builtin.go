//go:build unix

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"rrd/dispatcher"
	"rrd/handoff"
	"rrd/worker"
)

// The built-in worker: a small HTTP server that says who served the request. It
// is started by the master with builtInArg, the policy and the names of the
// listeners, and uses the worker library like any other program.

// builtInCommand is the command of the built-in worker that serves these.
func (m *master) builtInCommand(listeners []dispatcher.ListenerInfo) []string {
	argv := []string{selfPath(), builtInArg, string(m.cfg.Policy)}
	for _, ln := range listeners {
		argv = append(argv, ln.Network+"/"+ln.Name)
	}
	return argv
}

// checkBuiltIn tries whether --user may execute this program, which is the built-in worker.
// Only a try tells: mode, ACLs and security modules decide.
func (c *config) checkBuiltIn() error {
	if !c.builtIn() || c.Credential == nil || os.Geteuid() != 0 {
		return nil
	}
	cmd := exec.Command(selfPath(), "--version")
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: c.Credential.UID, Gid: c.Credential.GID}}
	err := cmd.Run()
	if !errors.Is(err, syscall.EACCES) {
		return nil // the worker reports any other error
	}
	option := "user"
	if c.user == nil {
		option = "group"
	}
	values := c.settings[option].values
	return c.bad(option, values[len(values)-1],
		fmt.Sprintf("may not execute rrd itself (%s), which is the built-in worker: give all users the right (chmod a+rx), or name a command", programPath()))
}

// selfPath is this very program, even if its file was replaced since.
func selfPath() string {
	if _, err := os.Stat("/proc/self/exe"); err == nil {
		return "/proc/self/exe"
	}
	if path, err := os.Executable(); err == nil {
		return path
	}
	return os.Args[0]
}

// Bounds of what a request may ask for.
const (
	maxSleep = time.Minute
	maxBytes = 1 << 30
)

// builtInAnswer is what any path answers.
type builtInAnswer struct {
	Worker     int    `json:"worker"`
	PID        int    `json:"pid"`
	Generation int    `json:"generation"`
	Policy     string `json:"policy"`
	Connection uint64 `json:"connection"`
	Remote     string `json:"remote"`
	URI        string `json:"uri"`
}

type builtIn struct {
	answer      builtInAnswer // what is the same in every one
	connections atomic.Uint64
}

type connectionKey struct{}

func runBuiltIn(args []string, stderr io.Writer) int {
	slot, serr := strconv.Atoi(os.Getenv(handoff.EnvSlot))
	generation, gerr := strconv.Atoi(os.Getenv(handoff.EnvGeneration))
	if !worker.Active() || serr != nil || gerr != nil || len(args) < 2 {
		return fail(stderr, exitUsage, fmt.Errorf("%s: only rrd itself starts its built-in worker; leave the argument out", builtInArg))
	}
	b := &builtIn{answer: builtInAnswer{Worker: slot, PID: os.Getpid(), Generation: generation, Policy: args[0]}}
	if err := b.serve(args[1:]); err != nil {
		return fail(stderr, exitFailure, err)
	}
	return exitOK
}

// serve serves every listener until one fails; rrd ends the process.
func (b *builtIn) serve(listeners []string) error {
	srv := &http.Server{
		Handler:           b,
		ReadHeaderTimeout: 30 * time.Second,
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, connectionKey{}, b.connections.Add(1))
		},
	}
	errs := make(chan error, len(listeners))
	var serving sync.WaitGroup
	for _, arg := range listeners {
		network, name, _ := strings.Cut(arg, "/")
		if strings.HasPrefix(network, "udp") {
			pc, err := worker.ListenPacket(network, name)
			if err != nil {
				return err
			}
			serving.Go(func() { errs <- b.servePackets(pc) })
			continue
		}
		ln, err := worker.Listen(network, name)
		if err != nil {
			return err
		}
		serving.Go(func() { errs <- worker.Serve(ln, srv) })
	}
	return <-errs
}

// servePackets answers each datagram with the object that any path answers.
func (b *builtIn) servePackets(pc net.PacketConn) error {
	buf := make([]byte, 64<<10)
	for {
		_, from, err := pc.ReadFrom(buf)
		if err != nil {
			return err
		}
		a := b.answer
		a.Connection, a.Remote = b.connections.Add(1), from.String()
		text, err := json.Marshal(a)
		if err != nil {
			return err
		}
		if _, err := pc.WriteTo(append(text, '\n'), from); err != nil && errors.Is(err, net.ErrClosed) {
			return err
		}
	}
}

func (b *builtIn) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Rrd-Worker", strconv.Itoa(b.answer.Worker))
	switch r.URL.Path {
	case "/sleep":
		ms, ok := number64(w, r, "ms", int64(maxSleep/time.Millisecond))
		if !ok {
			return
		}
		select {
		case <-time.After(time.Duration(ms) * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	case "/bytes":
		n, ok := number64(w, r, "n", maxBytes)
		if !ok {
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, zeroes{}, n) // a client that leaves is its own affair
		return
	}
	a := b.answer
	a.Connection, _ = r.Context().Value(connectionKey{}).(uint64)
	a.Remote, a.URI = r.RemoteAddr, r.RequestURI
	text, err := json.Marshal(a)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	text = append(text, '\n')
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	_, _ = w.Write(text)
}

// number64 reads a query parameter from 0 to limit, or answers what is wrong.
func number64(w http.ResponseWriter, r *http.Request, name string, limit int64) (int64, bool) {
	v := r.URL.Query().Get(name)
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > limit {
		http.Error(w, fmt.Sprintf("%s=%q is not a number from 0 to %d", name, v, limit), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

// zeroes reads as zero bytes without end.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
