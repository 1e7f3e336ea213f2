// Package worker is what a Go program imports to be a worker of rrd. Its
// listeners look like those of package net: under the policy rr Accept returns
// connections that the master has accepted and handed off, under none and
// reuseport it accepts by itself, and outside rrd Listen is net.Listen. The
// program cannot tell these apart.
//
//	ln, err := worker.Listen("tcp", ":8080")
//	if err != nil {
//		log.Fatal(err)
//	}
//	log.Fatal(worker.Serve(ln, &http.Server{Handler: handler}))
//
// # One channel, one reader
//
// A process has one channel to the master (rrd/handoff, docs/protocol.md), and
// one goroutine at a time reads it: the reading role. Who is in Accept takes the
// role and so receives its own connection without another goroutine in between;
// what it reads for other listeners goes to their queues. When it leaves, the
// role passes to another goroutine that waits in Accept, or, if none has come
// within a grace of five to ten milliseconds, to a goroutine of the library, so
// that the master is always answered. Accept takes the role back from that one.
//
// # Ownership
//
// A connection is this process's once its ack was sent; until then the master
// keeps its own copy and may give it to another worker. So the ack leaves before
// the first byte of the connection is read or written, whoever does that. Acks
// are gathered: those of a message leave with its last connection, and any before
// Accept blocks, before that first byte, and one millisecond after Accept returned
// at the latest. That a connection was touched, so that the master lets go of its copy,
// is told with what leaves next or 5 ms later, and with Close if no other connection came
// shortly before it. A connection that nobody takes for 20 ms is rejected, and the next
// Accept asks for more.
//
// # Drain and the end of the master
//
// When the master asks this process to finish, Accept returns no more
// connections and no error either: a program that ends when Accept fails would
// cut its open requests. Draining tells programs that want to know. The library
// counts the connections that Accept has returned and that were not closed, and
// reports when there are none; the master then ends the process by a signal. If
// the master itself is gone, the library ends the process with exit code 0 when
// no connection is open, or when the drain timeout is over. It closes the sockets
// that the master had lent 20 ms after the master's end, so that the next master can
// have their addresses; Accept blocks.
//
// # Keep-alive
//
// An HTTP client that keeps its connection may send its next request at the moment that the
// worker closes the connection, and that request is lost. Serve avoids it. While the
// worker drains, each answer says that it is the last on its connection, and a connection
// is closed without an answer only after half a second without a byte. http.Serve knows no
// drain: idle connections hold the worker until the drain timeout.
//
// # TLS
//
// A TLS session resumes on another worker only if both have the same ticket keys. TLSConfig
// gives a program those of the master:
//
//	cfg := worker.TLSConfig(&tls.Config{Certificates: certs, NextProtos: []string{"h2", "http/1.1"}})
//	log.Fatal(worker.Serve(tls.NewListener(ln, cfg), srv))
//
// # Locks
//
// channel.mu guards all state of the channel and of its listeners. channel.sendMu
// is held while frames are sent, taken before mu, so that frames leave in the
// order in which they were written down. The locks of Serve come before both.
package worker
