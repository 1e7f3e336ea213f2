package aside

import (
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// helperSocket is the helper's end of the pair.
const helperSocket = 3

// init runs before main. A program that is started as a helper does nothing else.
func init() {
	if len(os.Args) == 2 && os.Args[1] == Arg {
		main()
	}
}

// main is the helper. It ends with its socket and ignores signals, because a signal to
// the process group of the master, or from a terminal, is not for it.
func main() {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2,
		syscall.SIGPIPE, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	s := &server{sock: helperSocket}
	go s.watch() // ends with the process
	s.serve()
	os.Exit(0)
}

// Serve answers requests on a helper's end of the socket until the other end is
// closed. It is the helper without its process, for tests.
func Serve(sock handoff.FD) {
	s := &server{sock: sock.Num()}
	s.serve()
	s.discarding.Wait()
}

type server struct {
	sock int
	busy atomic.Bool // a call is under way
	out  []byte
	// discarding counts the closes under way. Each has a goroutine, so one that
	// hangs delays no other.
	discarding sync.WaitGroup
}

// watch ends the process when the other end of the socket is closed, even while a
// call hangs. It first gives that call a moment to end by itself.
func (s *server) watch() {
	p := []unix.PollFd{{Fd: int32(s.sock)}}
	for {
		if _, err := unix.Poll(p, -1); err == nil {
			break
		}
	}
	for s.busy.Load() {
		time.Sleep(10 * time.Millisecond)
		if s.busy.Load() {
			os.Exit(0)
		}
	}
}

func (s *server) serve() {
	in, oob := make([]byte, headerSize+1), make([]byte, unix.CmsgSpace(maxDiscard*4))
	for {
		n, oobn, _, _, err := unix.Recvmsg(s.sock, in, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		s.busy.Store(true)
		fds := takeRights(oob[:oobn])
		h, err := decodeRequest(in[:n], len(fds))
		if err != nil {
			closeAll(fds)
			return
		}
		err = s.perform(h, fds)
		s.busy.Store(false)
		if err != nil {
			return
		}
	}
}

// perform makes one call and answers. Its error is that of sending the answer. The
// descriptors are closed before the answer leaves: then the other end has its own
// still, so ours are never the last and closing does not wait.
func (s *server) perform(h header, fds []handoff.FD) error {
	answer := header{call: h.call, id: h.id}
	var payload []byte
	var accepted []handoff.FD
	d := fds[0]
	switch h.call {
	case Recall:
		var sent error
		answer.errno = errnoOf(handoff.Recall(d, func(msg []byte) {
			if sent == nil {
				sent = s.send(header{call: h.call, id: h.id, part: true}, msg, nil)
			}
		}))
		if sent != nil {
			closeAll(fds)
			return sent
		}
	case Conn:
		var f ConnFacts
		if f, answer.errno = connFacts(d.Num()); answer.errno == 0 {
			payload = f.append(nil)
		}
	case Queue:
		var f QueueFacts
		if f, answer.errno = queueFacts(d.Num()); answer.errno == 0 {
			payload = f.append(nil)
		}
	case Accept:
		accepted, answer.errno = acceptSome(d.Num(), int(h.arg))
	case Listen:
		answer.errno = errnoOf(unix.Listen(d.Num(), int(h.arg)))
	case RefuseNew:
		answer.errno = RefuseNewInline(d)
	case DetachFilter:
		answer.errno = DetachFilterInline(d)
	case DetachReuseport:
		answer.errno = errnoOf(unix.SetsockoptInt(d.Num(), unix.SOL_SOCKET, unix.SO_DETACH_REUSEPORT_BPF, 0))
	case Reuseport:
		answer.errno = ReuseportInline(d, int(h.arg))
	case Shutdown:
		answer.errno = errnoOf(unix.Shutdown(d.Num(), unix.SHUT_RD))
	case discard:
		for _, d := range fds {
			s.discarding.Go(func() { discardOne(d) })
		}
		fds = nil
	}
	closeAll(fds)
	answer.arg = uint64(len(accepted))
	err := s.send(answer, payload, accepted)
	closeAll(accepted)
	return err
}

func (s *server) send(h header, payload []byte, fds []handoff.FD) error {
	s.out = append(h.append(s.out[:0]), payload...)
	var oob []byte
	if len(fds) > 0 {
		nums := make([]int, len(fds))
		for i := range fds {
			nums[i] = fds[i].Num()
		}
		oob = unix.UnixRights(nums...)
	}
	for {
		err := unix.Sendmsg(s.sock, s.out, oob, nil, unix.MSG_NOSIGNAL)
		switch err {
		case unix.EINTR:
		case unix.ETOOMANYREFS, unix.ENOBUFS, unix.ENOMEM:
			time.Sleep(time.Millisecond) // an accepted connection must not get lost
		default:
			return err
		}
	}
}

// takeRights owns the descriptors that came with a message.
func takeRights(oob []byte) (fds []handoff.FD) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		nums, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, n := range nums {
			fds = append(fds, handoff.Own(n))
		}
	}
	return fds
}

func closeAll(fds []handoff.FD) {
	for i := range fds {
		_ = fds[i].Close()
	}
}
