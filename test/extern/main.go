// Program hello is a worker of rrd as a user would write it, in a module of its
// own: it sees nothing but the public package rrd/worker. Without rrd it runs
// alone.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"rrd/worker"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx is done. It prints the address that it serves.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("hello", flag.ContinueOnError)
	addr := fs.String("addr", "127.0.0.1:8080", "address to serve; rrd --listen wins")
	network := fs.String("network", "tcp", "tcp or unix")
	cert := fs.String("cert", "", "PEM file of a certificate and its key: serve TLS")
	if err := fs.Parse(args); err != nil {
		return err
	}

	ln, err := worker.Listen(*network, *addr)
	if err != nil {
		return err
	}
	if *cert != "" {
		pair, err := tls.LoadX509KeyPair(*cert, *cert)
		if err != nil {
			return errors.Join(err, ln.Close())
		}
		ln = tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{pair}})
	}
	return serve(ctx, ln, stdout)
}

func serve(ctx context.Context, ln net.Listener, stdout io.Writer) error {
	srv := &http.Server{
		Handler:           http.HandlerFunc(hello),
		ReadHeaderTimeout: 5 * time.Second,
	}
	servedC := make(chan error, 1)
	go func() { servedC <- srv.Serve(ln) }() // waited for below
	if _, err := fmt.Fprintln(stdout, ln.Addr()); err != nil {
		return errors.Join(err, srv.Close())
	}
	select {
	case err := <-servedC:
		return err
	case <-worker.Draining():
		// No new connection comes any more. End the idle ones after their next
		// request and go on until rrd sends TERM.
		srv.SetKeepAlivesEnabled(false)
		<-ctx.Done()
	case <-ctx.Done():
	}
	grace, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := srv.Shutdown(grace)
	if serveErr := <-servedC; !errors.Is(serveErr, http.ErrServerClosed) {
		err = errors.Join(err, serveErr)
	}
	return err
}

func hello(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintf(w, "hello from %d, in rrd: %v\n", os.Getpid(), worker.Active())
}
