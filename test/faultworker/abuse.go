//go:build unix

package main

import (
	"errors"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// frames encodes a message.
func frames(fs ...handoff.Frame) []byte {
	var b []byte
	for i := range fs {
		b = fs[i].Append(b)
	}
	return b
}

func repeat(n int, f handoff.Frame) []byte {
	var b []byte
	for range n {
		b = f.Append(b)
	}
	return b
}

// violations are what a worker is to be ended for, as messages. f is a handoff that
// it has in hand and has not answered.
var violations = map[string]func(f *handoff.Frame, chance *rand.Rand) [][]byte{
	"random": func(_ *handoff.Frame, chance *rand.Rand) [][]byte {
		b := make([]byte, handoff.FrameSize*(1+chance.IntN(handoff.MaxFrames)))
		for i := range b {
			b[i] = byte(chance.Uint32())
		}
		return [][]byte{b}
	},
	// Proper frames of every type and any content, until one is wrong.
	"frames": func(_ *handoff.Frame, chance *rand.Rand) [][]byte {
		var all [][]byte
		for range 4 {
			var b []byte
			for range handoff.MaxFrames {
				fr := handoff.Frame{
					Type: handoff.Type(chance.IntN(40)), Seq: chance.Uint64() >> chance.IntN(64),
					Flags: uint16(chance.Uint32()), Listener: chance.Uint32() >> chance.IntN(32), Arg: chance.Uint32() >> chance.IntN(32),
				}
				if fr.Type == handoff.Bye {
					fr.Type = 63
				}
				b = fr.Append(b)
			}
			all = append(all, b)
		}
		return append(all, repeat(1, handoff.Frame{Type: handoff.Ack, Seq: 1 << 62}))
	},
	// Much that is legal, and much of everything behind it.
	"storm": func(_ *handoff.Frame, chance *rand.Rand) (all [][]byte) {
		for i := range 256 {
			var b []byte
			for range handoff.MaxFrames {
				fr := handoff.Frame{Type: handoff.Touched, Seq: chance.Uint64() >> chance.IntN(64)}
				if i > 32 {
					fr.Type = handoff.Type(chance.IntN(24)) // those before BYE
				}
				b = fr.Append(b)
			}
			all = append(all, b)
		}
		return all
	},
	"short": func(*handoff.Frame, *rand.Rand) [][]byte { return [][]byte{make([]byte, handoff.FrameSize-1)} },
	"cut": func(*handoff.Frame, *rand.Rand) [][]byte {
		return [][]byte{repeat(2, handoff.Frame{Type: handoff.Again})[:100]}
	},
	"long": func(*handoff.Frame, *rand.Rand) [][]byte { return [][]byte{make([]byte, handoff.MaxMessage+1)} },
	"17 frames": func(*handoff.Frame, *rand.Rand) [][]byte {
		return [][]byte{repeat(17, handoff.Frame{Type: handoff.Again})}
	},
	"empty":    func(*handoff.Frame, *rand.Rand) [][]byte { return [][]byte{{}} },
	"no magic": func(*handoff.Frame, *rand.Rand) [][]byte { return [][]byte{make([]byte, handoff.FrameSize)} },
	"version 0": func(*handoff.Frame, *rand.Rand) [][]byte {
		b := frames(handoff.Frame{Type: handoff.Again})
		b[3] = 0
		return [][]byte{b}
	},
	"unknown":     only(handoff.Frame{Type: 99}),
	"master's":    only(handoff.Frame{Type: handoff.Drain}),
	"foreign":     only(handoff.Frame{Type: handoff.Ack, Seq: 0xdeadbeef00}),
	"foreign no":  only(handoff.Frame{Type: handoff.Reject, Seq: 0xdeadbeef00, Arg: 1}),
	"ready again": only(handoff.Frame{Type: handoff.Ready}),
	"drained":     only(handoff.Frame{Type: handoff.Drained}),
	"pong":        only(handoff.Frame{Type: handoff.Pong, Seq: 77}),
	"closed":      only(handoff.Frame{Type: handoff.Closed, Arg: 1 << 30}),
	"replay": func(f *handoff.Frame, _ *rand.Rand) [][]byte {
		// The reject comes first, so that the connection is somebody else's.
		return [][]byte{frames(handoff.Frame{Type: handoff.Reject, Seq: f.Seq, Arg: 1}, handoff.Frame{Type: handoff.Reject, Seq: f.Seq, Arg: 1})}
	},
	"ack after reject": func(f *handoff.Frame, _ *rand.Rand) [][]byte {
		return [][]byte{frames(handoff.Frame{Type: handoff.Reject, Seq: f.Seq, Arg: 1}), frames(handoff.Frame{Type: handoff.Ack, Seq: f.Seq})}
	},
	"payload": func(*handoff.Frame, *rand.Rand) [][]byte {
		b := frames(handoff.Frame{Type: handoff.Again})
		b[24] = 64
		return [][]byte{append(b, make([]byte, 64)...)}
	},
}

func only(f handoff.Frame) func(*handoff.Frame, *rand.Rand) [][]byte {
	return func(*handoff.Frame, *rand.Rand) [][]byte { return [][]byte{frames(f)} }
}

// violate does one of them, that of the mode or any, and waits to be killed.
func (w *worker) violate(f *handoff.Frame) {
	name := w.kind
	if violations[name] == nil {
		names := slices.Sorted(maps.Keys(violations))
		name = names[w.chance.IntN(len(names))]
	}
	w.serving.Wait() // what was acked before is to be served
	for _, b := range violations[name](f, w.chance) {
		if w.raw(b, nil) != nil {
			break // it has been seen
		}
	}
	forever()
}

// raw sends anything, and waits while the channel is full.
func (w *worker) raw(b, oob []byte) error {
	for {
		err := unix.Sendmsg(w.channel, b, oob, nil, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EAGAIN):
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(w.channel), Events: unix.POLLOUT}}, 100)
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
}

// maxRights is how many descriptors one message may carry (SCM_MAX_FD of Linux).
const maxRights = 253

// bomb sends n messages with as many descriptors as fit, and says how many the
// kernel took.
func (w *worker) bomb(n int) {
	fds := make([]int, maxRights)
	for i := range fds {
		fds[i] = w.channel
	}
	oob := unix.UnixRights(fds...)
	b := frames(handoff.Frame{Type: handoff.Leave, Listener: 1 << 30})
	taken := 0
	for range n {
		if w.raw(b, oob) == nil {
			taken++
		}
	}
	w.book.note("bombs", n)
	w.book.note("bombs taken", taken)
}

// flood sends what is legal as fast as it can for a while.
func (w *worker) flood(span time.Duration) {
	b := frames(
		handoff.Frame{Type: handoff.Again}, handoff.Frame{Type: handoff.Again, Listener: 1}, handoff.Frame{Type: handoff.Again, Listener: 2},
		handoff.Frame{Type: handoff.Touched, Seq: 12345}, handoff.Frame{Type: handoff.Touched, Seq: 1 << 63},
		handoff.Frame{Type: handoff.Leave, Listener: 1 << 30}, handoff.Frame{Type: handoff.Health, Arg: 1},
		handoff.Frame{Type: handoff.Health},
	)
	b = append(b, repeat(handoff.MaxFrames-8, handoff.Frame{Type: handoff.Touched, Seq: 7 << 20})...)
	n := 0
	for end := time.Now().Add(span); time.Now().Before(end); n += handoff.MaxFrames {
		if w.raw(b, nil) != nil {
			break
		}
	}
	w.book.note("frames", n)
}

// hog uses up memory when told so by SIGUSR2.
func hog() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGUSR2)
	<-told
	var all [][]byte
	for {
		b := make([]byte, 1<<20)
		for i := range b {
			b[i] = byte(i)
		}
		all = append(all, b)
		if len(all) > 4096 { // nobody limits it
			os.Exit(71)
		}
	}
}

// inFlight holds descriptors in messages that nobody receives, as many as the
// kernel lets this user, until the channel ends or the gate opens.
func (w *worker) inFlight() error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(pair[0], true); err != nil {
		return err
	}
	ends := []*os.File{os.NewFile(uintptr(pair[0]), "in flight"), os.NewFile(uintptr(pair[1]), "in flight")}
	fds := make([]int, maxRights)
	for i := range fds {
		fds[i] = w.channel
	}
	n := 0
	for ; n < 100_000; n += maxRights {
		if err = unix.Sendmsg(pair[0], []byte{0}, unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
			break
		}
	}
	w.book.note("in flight", n)
	w.mu.Lock()
	w.holding = ends
	w.mu.Unlock()
	return nil
}

// grandchild leaves the channel to a process of another session, which holds it
// until the gate opens.
func (w *worker) grandchild() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, "-gate", w.gate, "linger")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(w.channel), "channel")}
	return cmd.Start() // nobody waits for it: this process dies
}
