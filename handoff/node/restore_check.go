package node

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"rrd/handoff"
)

// countable is what a number of ours must be below, for a worker to count to it
// (JavaScript's integers) and for us to go on counting.
const countable = 1 << 53

// check reports what no Conn can be in, by the name of the field. It quotes no
// text: those are secrets.
func (s *State) check() (drainStep, error) {
	i := slices.Index(drainNames[:], s.Drain)
	step := drainStep(max(i, 0))
	switch {
	case i < 0:
		return 0, fmt.Errorf("drain: unknown step %.20q", s.Drain)
	case !s.FD.Valid():
		return 0, errors.New("fd: none")
	case s.Sender < 0:
		return 0, fmt.Errorf("sender: %d is no process", s.Sender)
	case len(s.Input) > maxLine:
		return 0, fmt.Errorf("input: %d bytes, there is room for %d", len(s.Input), maxLine)
	case len(s.Unsent) > maxUnsent:
		return 0, fmt.Errorf("unsent: %d bytes, there is room for %d", len(s.Unsent), maxUnsent)
	case s.Next >= countable:
		return 0, fmt.Errorf("next: %d, nobody counts so far", s.Next)
	case s.Pos >= countable:
		return 0, fmt.Errorf("pos: %d, nobody sends so much", s.Pos)
	case uint64(len(s.Unsent)) > s.Pos:
		return 0, fmt.Errorf("unsent: %d bytes of %d", len(s.Unsent), s.Pos)
	case s.Acked > s.Pos:
		return 0, fmt.Errorf("acked: %d of %d bytes", s.Acked, s.Pos)
	case s.SaidReady && !s.Listening:
		return 0, errors.New("said_ready: of a worker that does not listen")
	}
	for _, check := range []func() error{s.checkAsks, s.checkWindow, s.checkAgain, s.checkFDs} {
		if err := check(); err != nil {
			return 0, err
		}
	}
	return step, s.checkDrain(step)
}

func (s *State) checkAsks() error {
	if len(s.Asked) > maxAsked {
		return fmt.Errorf("asked: %d, there are %d at most", len(s.Asked), maxAsked)
	}
	for i, a := range s.Asked {
		if a.Seq >= countable {
			return fmt.Errorf("asked[%d].seq: %d, nobody counts so far", i, a.Seq)
		}
	}
	for i, seq := range s.MayLeave {
		if seq >= countable {
			return fmt.Errorf("may_leave[%d]: %d, nobody counts so far", i, seq)
		}
	}
	open := make(map[uint32]bool, len(s.Open))
	for i, wire := range s.Open {
		if open[wire] {
			return fmt.Errorf("open[%d]: %d is there twice", i, wire)
		}
		open[wire] = true
	}
	return nil
}

// checkWindow: window.go and send.go say why it is so.
func (s *State) checkWindow() error {
	if s.Arrived < 0 || s.Arrived > len(s.Under) {
		return fmt.Errorf("arrived: %d of %d", s.Arrived, len(s.Under))
	}
	end, n := uint64(0), uint64(0) // what the next must be beyond, and not below
	for i := range s.Under {
		h := &s.Under[i]
		arrived := i < s.Arrived
		switch {
		case h.End <= end || h.End > s.Pos:
			return fmt.Errorf("under[%d].end: %d, after %d and of %d bytes", i, h.End, end, s.Pos)
		case arrived != (h.End <= s.Acked):
			return fmt.Errorf("under[%d].end: %d does not fit %d arrived and %d bytes acknowledged", i, h.End, s.Arrived, s.Acked)
		case arrived && (h.Done || h.Share != nil):
			return fmt.Errorf("under[%d]: has arrived and waits for nothing more", i)
		}
		end = h.End
		if h.Share != nil {
			if err := s.checkSharing(i, h); err != nil {
				return err
			}
			continue
		}
		if h.N < n || h.N >= s.Next {
			return fmt.Errorf("under[%d].n: %d, after %d and before %d", i, h.N, n, s.Next)
		}
		n = h.N + 1
	}
	return nil
}

// checkSharing checks a shared socket under way. Sent again it has used up no
// number, so that its own says little, and nobody asks for it.
func (s *State) checkSharing(i int, h *Handle) error {
	switch {
	case h.N > s.Next:
		return fmt.Errorf("under[%d].n: %d, before %d", i, h.N, s.Next)
	case h.Fence || h.Done || h.Seq != 0 || h.Wire != h.Share.Wire:
		return fmt.Errorf("under[%d].share: beside a handoff", i)
	case h.Share.Tries > 0 && !h.Share.FD.Valid():
		return fmt.Errorf("under[%d].share.fd: none, though it was sent again", i)
	}
	if err := h.Share.check(); err != nil {
		return fmt.Errorf("under[%d].share.%w", i, err)
	}
	return nil
}

func (s *State) checkAgain() error {
	for i := range s.Again {
		a := &s.Again[i]
		err := a.check()
		switch {
		case err != nil:
		case !a.FD.Valid():
			err = errors.New("fd: none")
		case a.Tries == 0:
			err = errors.New("tries: 0, though it was lost")
		}
		if err != nil {
			return fmt.Errorf("again[%d].%w", i, err)
		}
	}
	return nil
}

func (s *Share) check() error {
	switch {
	case s.Tries < 0 || s.Tries > maxLost:
		return fmt.Errorf("tries: %d of %d", s.Tries, maxLost)
	case s.Seq >= countable:
		return fmt.Errorf("seq: %d, nobody counts so far", s.Seq)
	case len(s.Text) == 0 || len(s.Text) > maxUnsent || !bytes.HasSuffix(s.Text, []byte{'\n'}):
		return fmt.Errorf("text: %d bytes, not one line", len(s.Text))
	}
	return nil
}

// checkFDs: every descriptor has one owner.
func (s *State) checkFDs() error {
	seen := map[handoff.FD]bool{}
	for _, d := range s.FDs() {
		if seen[d] {
			return fmt.Errorf("fd: descriptor %d is there twice", d.Num())
		}
		seen[d] = true
	}
	return nil
}

// checkDrain: every step waits for something that will end it.
func (s *State) checkDrain(step drainStep) error {
	owed, fence := false, false // not answered
	fences := 0
	for i := range s.Under {
		h := &s.Under[i]
		if h.Fence {
			// Answered it is done, and then the worker is told.
			if fences++; fences > 1 || h.Wire != noServer || h.Seq != 0 || step < fencing || h.Done != (step == told) {
				return fmt.Errorf("under[%d].fence: of a drain that is %q", i, s.Drain)
			}
			fence = !h.Done
		} else if h.Share == nil && !h.Done {
			owed = true
		}
	}
	switch {
	case fence != (step == fencing):
		return fmt.Errorf("drain: %q, but no fence is under way", s.Drain)
	case owed && step >= fencing:
		return fmt.Errorf("drain: %q, but a handoff is not answered", s.Drain)
	case s.FenceWaits != (step == waiting && !owed):
		return fmt.Errorf("fence_waits: %v, though the drain is %q and a handoff unanswered %v", s.FenceWaits, s.Drain, owed)
	}
	return nil
}
