package worker

import (
	"context"
	"net"
)

// Outside rrd: the same types, with nobody to answer to.

func listenAlone(network, addr string) (net.Listener, error) {
	var lc net.ListenConfig
	// MPTCP, the default of package net, costs 5 to 10 % per accepted connection
	// (docs/performance.md), and the sockets that rrd makes are plain TCP too.
	lc.SetMultipathTCP(false)
	inner, err := lc.Listen(context.Background(), network, addr)
	if err != nil {
		return nil, err
	}
	return aloneListener{inner}, nil
}

type aloneListener struct{ net.Listener }

func (ln aloneListener) Accept() (net.Conn, error) {
	c, err := ln.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wrap(c, nil, 0, 0, ours), nil
}

func listenPacketAlone(network, addr string) (net.PacketConn, error) {
	c, err := net.ListenPacket(network, addr)
	if err != nil {
		return nil, err
	}
	return &packetConn{UDPConn: c.(*net.UDPConn)}, nil
}
