package dispatcher

import (
	"context"
	"fmt"
	"os"
	"strings"
)

// Shared listeners: under none all workers accept from one socket, under
// reuseport each slot from one of its own, of which the master keeps a copy: what
// the kernel has queued for a dead worker waits for its successor instead of
// being reset. They sit beside round robin behind the same Listen, Add, Drain and
// Remove; native workers get the descriptor with LISTENING, others inherit it
// (Lend).

// Lend returns a duplicate of every shared listener's socket for the worker of
// slot, in no order. The caller closes them.
func (d *Dispatcher) Lend(slot int) ([]Lent, error) {
	if err := d.prepareSlot(slot); err != nil {
		return nil, err
	}
	var out []Lent
	var lerr error
	err := d.do(context.Background(), func(l *loop) {
		for _, ln := range l.listeners {
			if ln == nil || !ln.shared || ln.closing || !ln.stats.Open {
				continue
			}
			share := ln.lendTo(slot)
			if !share.Valid() {
				continue
			}
			dup, err := share.Dup()
			if err != nil {
				lerr = fmt.Errorf("lend %s: %w", ln.conf.Name, err)
				return
			}
			out = append(out, Lent{Name: FDName(ln.conf.Name), Address: ln.conf.Address, File: os.NewFile(uintptr(dup.Release()), ln.conf.Name)})
		}
	})
	if err == nil {
		err = lerr
	}
	if err != nil {
		for _, x := range out {
			_ = x.File.Close()
		}
		return nil, err
	}
	return out, nil
}

// FDName makes a name fit for LISTEN_FDNAMES, which a colon separates
// (sd_listen_fds_with_names(3)).
func FDName(name string) string { return strings.ReplaceAll(name, ":", "_") }

// slotSocket is one socket that a slot still needs.
type slotSocket struct {
	wire    uint32
	network string
	address string
	backlog int
}

// prepareSlot makes, under reuseport, the sockets of a slot that has none yet.
func (d *Dispatcher) prepareSlot(slot int) error {
	d.awaitRevival()
	if d.cfg.Policy != SchedReuseport {
		return nil
	}
	var need []slotSocket
	err := d.do(context.Background(), func(l *loop) {
		for _, ln := range l.listeners {
			if ln != nil && len(ln.bySlot) > 0 && !ln.closing && ln.asked == nil && !ln.lendTo(slot).Valid() {
				need = append(need, slotSocket{ln.wire, ln.network, ln.addr, ln.conf.Backlog})
			}
		}
	})
	if err != nil {
		return err
	}
	for _, n := range need {
		s, err := bindSocket(n.network, n.address, bindOptions{reuseport: true, backlog: n.backlog, uid: -1, gid: -1})
		if err != nil {
			return fmt.Errorf("listen %s for slot %d: %w", n.address, slot, err)
		}
		err = d.do(context.Background(), func(l *loop) {
			if ln := l.byWire[n.wire]; ln == nil || ln.closing || !ln.addSlot(slot, s) {
				_ = s.close()
			}
			l.reviewSlots() // its worker may never come
		})
		if err != nil {
			_ = s.close()
			return err
		}
	}
	return nil
}

// addSlot gives slot its socket; false: it has one.
func (ln *listener) addSlot(slot int, s *socket) bool {
	if ln.lendTo(slot).Valid() {
		return false
	}
	if ln.waits {
		_ = waitInAccept(s.fd) // see open
	}
	s.noteQueue()
	ln.bySlot = append(ln.bySlot, &slotSock{socket: s, slot: slot})
	return true
}
