package main

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

// notifyPatience is how long one message may wait for the service manager to read.
const notifyPatience = time.Second

// systemd returns what speaks to the service manager, nil if there is none. Workers get
// neither NOTIFY_SOCKET nor WATCHDOG_*: they are not the service.
func systemd(log zerolog.Logger) *notifier {
	address := os.Getenv("NOTIFY_SOCKET")
	if address == "" {
		return nil
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn().Str("event", "systemd.failed").Err(err).Msg("going on without a watchdog")
	}
	return newNotifier(log, func(x notice) error { return sendNotice(address, x) }, watchdog, daemon.SdNotifyMonotonicUsec)
}

// sendNotice is SdNotify of package daemon with a descriptor and an end to waiting, of
// which that one has neither.
func sendNotice(address string, x notice) error {
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: address, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	defer conn.Close() //nolint:errcheck // written, or not
	if err := conn.SetWriteDeadline(time.Now().Add(notifyPatience)); err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	if x.file == nil {
		_, err = conn.Write([]byte(x.text))
		return err
	}
	file, err := x.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	socket, err := conn.SyscallConn()
	if err != nil {
		return fmt.Errorf("notify: %w", err)
	}
	// Control, for Fd would make the listener wait in accept(2). By hand, for package net
	// sends no messages with descriptors on a connected datagram socket.
	var serr error
	cerr := file.Control(func(fd uintptr) {
		rights := syscall.UnixRights(int(fd))
		err = socket.Write(func(to uintptr) (done bool) {
			serr = syscall.Sendmsg(int(to), []byte(x.text), rights, nil, syscall.MSG_NOSIGNAL)
			return serr != syscall.EAGAIN && serr != syscall.EINTR
		})
	})
	switch {
	case cerr != nil:
		return fmt.Errorf("notify: %w", cerr)
	case err != nil:
		return fmt.Errorf("notify: %w", err)
	}
	return os.NewSyscallError("sendmsg", serr)
}
