// Command goworker is the worker of the comparison in test/bench: an HTTP server
// as net/http makes it, the same program under rrd, whatever the policy, and
// alone behind a proxy, where it prints "ready ADDRESS" and ends on TERM.
//
//	goworker ADDRESS
//
//	/             "ok PID"
//	/bytes?n=N    N bytes
//	/slow?ms=N    "ok PID" after N milliseconds, in one of a few places
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"rrd/worker"
)

// places is how many slow requests a worker has under way; the others wait. It
// stands for what a process has only so much of, threads or connections to a
// database: without it a Go program would have room for any number, and
// it would not matter which worker gets a connection.
const places = 8

// most is what a request may ask for, of bytes and of milliseconds.
const most = 1 << 30

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "goworker:", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: goworker ADDRESS")
	}
	ln, err := worker.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	srv := &http.Server{Handler: handler(os.Getpid()), ReadHeaderTimeout: time.Minute}
	if worker.Active() {
		return srv.Serve(ln) // rrd ends the process
	}
	return alone(srv, ln, out)
}

// alone serves until TERM.
func alone(srv *http.Server, ln net.Listener, out io.Writer) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }() // received below
	if _, err := fmt.Fprintln(out, "ready", ln.Addr()); err != nil {
		return err
	}
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	return errors.Join(srv.Close(), unlessClosed(<-served))
}

// unlessClosed is what ended serving, if it was not us.
func unlessClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func handler(pid int) http.Handler {
	word := []byte("ok " + strconv.Itoa(pid))
	answer := func(w http.ResponseWriter) {
		w.Header().Set("Content-Length", strconv.Itoa(len(word)))
		_, _ = w.Write(word)
	}
	free := make(chan struct{}, places)
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { answer(w) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		ms, ok := number(w, r, "ms")
		if !ok {
			return
		}
		free <- struct{}{}
		time.Sleep(time.Duration(ms) * time.Millisecond)
		<-free
		answer(w)
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		if n, ok := number(w, r, "n"); ok {
			send(w, n)
		}
	})
	return mux
}

// number reads a parameter, or answers what is wrong with it.
func number(w http.ResponseWriter, r *http.Request, name string) (int64, bool) {
	v := r.URL.Query().Get(name)
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < 0 || n > most {
		http.Error(w, fmt.Sprintf("%s=%q is not a number from 0 to %d", name, v, most), http.StatusBadRequest)
		return 0, false
	}
	return n, true
}

func send(w http.ResponseWriter, n int64) {
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	for chunk := make([]byte, 256<<10); n > 0; {
		sent, err := w.Write(chunk[:min(n, int64(len(chunk)))])
		if err != nil {
			return // a client that leaves is its own affair
		}
		n -= int64(sent)
	}
}
