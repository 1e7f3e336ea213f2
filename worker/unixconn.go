package worker

import (
	"net"
	"os"
	"syscall"
	"time"
)

// NetConn returns the *net.UnixConn. It is lent: close the UnixConn, not this.
func (c *UnixConn) NetConn() net.Conn { c.h.touchNow(); return c.UnixConn }

func (c *UnixConn) Read(b []byte) (int, error) {
	c.h.touch()
	n, err := c.UnixConn.Read(b)
	if l := c.h.leash.Load(); l != nil {
		n, err = l.finish(b, n, err)
	}
	return n, c.h.ended("read", c.UnixConn, err)
}

func (c *UnixConn) Write(b []byte) (int, error) {
	c.h.touch()
	n, err := c.UnixConn.Write(b)
	return n, c.h.ended("write", c.UnixConn, err)
}

// ReadFrom is that of *net.UnixConn.
func (c *UnixConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.h.touch()
	n, addr, err := c.UnixConn.ReadFrom(b)
	return n, addr, c.h.ended("read", c.UnixConn, err)
}

// ReadFromUnix is that of *net.UnixConn.
func (c *UnixConn) ReadFromUnix(b []byte) (int, *net.UnixAddr, error) {
	c.h.touch()
	n, addr, err := c.UnixConn.ReadFromUnix(b)
	return n, addr, c.h.ended("read", c.UnixConn, err)
}

// ReadMsgUnix is that of *net.UnixConn.
func (c *UnixConn) ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error) {
	c.h.touch()
	n, oobn, flags, addr, err = c.UnixConn.ReadMsgUnix(b, oob)
	return n, oobn, flags, addr, c.h.ended("read", c.UnixConn, err)
}

// WriteTo is that of *net.UnixConn.
func (c *UnixConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	c.h.touch()
	n, err := c.UnixConn.WriteTo(b, addr)
	return n, c.h.ended("write", c.UnixConn, err)
}

// WriteToUnix is that of *net.UnixConn.
func (c *UnixConn) WriteToUnix(b []byte, addr *net.UnixAddr) (int, error) {
	c.h.touch()
	n, err := c.UnixConn.WriteToUnix(b, addr)
	return n, c.h.ended("write", c.UnixConn, err)
}

// WriteMsgUnix is that of *net.UnixConn.
func (c *UnixConn) WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error) {
	c.h.touch()
	n, oobn, err = c.UnixConn.WriteMsgUnix(b, oob, addr)
	return n, oobn, c.h.ended("write", c.UnixConn, err)
}

// CloseRead is that of *net.UnixConn.
func (c *UnixConn) CloseRead() error { c.h.touch(); return c.UnixConn.CloseRead() }

// CloseWrite is that of *net.UnixConn.
func (c *UnixConn) CloseWrite() error { c.h.touch(); return c.UnixConn.CloseWrite() }

// SyscallConn is that of *net.UnixConn; see Conn.SyscallConn.
func (c *UnixConn) SyscallConn() (syscall.RawConn, error) {
	c.h.touchNow()
	return c.UnixConn.SyscallConn()
}

// File is that of *net.UnixConn; see Conn.SyscallConn.
func (c *UnixConn) File() (*os.File, error) { c.h.touchNow(); return c.UnixConn.File() }

// Close ends the connection; see Conn.Close.
func (c *UnixConn) Close() error { return c.h.close(c.UnixConn) }

// What package net's types have in common, see noBuffers.

func (c *UnixConn) LocalAddr() net.Addr           { return c.UnixConn.LocalAddr() }
func (c *UnixConn) RemoteAddr() net.Addr          { return c.UnixConn.RemoteAddr() }
func (c *UnixConn) SetDeadline(t time.Time) error { return c.h.setDeadline(t, c.UnixConn.SetDeadline) }
func (c *UnixConn) SetReadDeadline(t time.Time) error {
	return c.h.setDeadline(t, c.UnixConn.SetReadDeadline)
}
func (c *UnixConn) SetWriteDeadline(t time.Time) error { return c.UnixConn.SetWriteDeadline(t) }
func (c *UnixConn) SetReadBuffer(bytes int) error      { return c.UnixConn.SetReadBuffer(bytes) }
func (c *UnixConn) SetWriteBuffer(bytes int) error     { return c.UnixConn.SetWriteBuffer(bytes) }
