package worker

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"

	"rrd/handoff"
)

// process returns this process's channel; nil without an error outside rrd.
var process = sync.OnceValues(openProcess)

// openProcess reads what the master has put into the environment and takes it
// out again. An error is for every later Listen to return.
func openProcess() (*channel, error) {
	text, ok := os.LookupEnv(handoff.EnvChannelFD)
	if !ok {
		return nil, nil
	}
	version, _ := os.LookupEnv(handoff.EnvProtocol)
	_ = os.Unsetenv(handoff.EnvChannelFD)
	_ = os.Unsetenv(handoff.EnvProtocol)

	fd, err := strconv.Atoi(text)
	if err != nil || fd < handoff.FirstInheritedFD {
		return nil, fmt.Errorf("%s=%q is not a descriptor that rrd passes: this variable is rrd's own, unset it to run alone",
			handoff.EnvChannelFD, text)
	}
	v, err := strconv.Atoi(version)
	if err != nil || v < handoff.OldestVersion {
		return nil, fmt.Errorf("%s=%q is not a protocol version: this variable is rrd's own, unset %s to run alone",
			handoff.EnvProtocol, version, handoff.EnvChannelFD)
	}
	port, err := handoff.OpenPort(fd)
	if err != nil {
		return nil, fmt.Errorf("%s=%d: %w: this variable is rrd's own, unset it to run alone", handoff.EnvChannelFD, fd, err)
	}
	ch := newChannel(port)
	ch.version = uint8(min(v, handoff.ProtocolVersion))
	ch.beforeListen = func() { closeLent(fd) }
	return ch, nil
}

// closeLent closes the listeners that came beside the channel for programs that
// know the systemd convention only (sd_listen_fds(3)) and removes its variables:
// this program asks for its listeners over the channel. They are ours if
// LISTEN_PID says so. What is not a socket was not passed by rrd and stays.
func closeLent(channelFD int) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return
	}
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		_ = os.Unsetenv(name)
	}
	for fd := handoff.FirstInheritedFD; fd < handoff.FirstInheritedFD+n && fd != channelFD; fd++ {
		if _, err := syscall.GetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_TYPE); err == nil {
			d := handoff.Own(fd)
			_ = d.Close()
		}
	}
}
