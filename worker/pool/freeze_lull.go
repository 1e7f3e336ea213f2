package pool

import (
	"errors"
	"os"
	"sync"
	"time"
)

// lull holds a goroutine that reads, between two of its reads. The zero lull is ready.
// The reader calls rest after each error and end when it is done.
type lull struct {
	mu    sync.Mutex
	heldC chan struct{} // closed when the reader rests or has ended
	goC   chan struct{} // closed when it may go on; nil: nobody wants it to rest
	over  bool
}

// hold returns when the reader rests. setDeadline is that of what it reads.
func (l *lull) hold(setDeadline func(time.Time) error) error {
	l.mu.Lock()
	if l.over || l.goC != nil {
		l.mu.Unlock()
		return nil
	}
	heldC := make(chan struct{})
	l.heldC, l.goC = heldC, make(chan struct{})
	l.mu.Unlock()
	if err := setDeadline(time.Unix(1, 0)); errors.Is(err, os.ErrNoDeadline) {
		l.release(setDeadline)
		return err // any other is that of a closed file, which the reader sees too
	}
	<-heldC
	return nil
}

// release lets it go on, if it is held.
func (l *lull) release(setDeadline func(time.Time) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.goC == nil || l.over {
		return
	}
	_ = setDeadline(time.Time{}) // an error is for the reader to see
	close(l.goC)
	l.goC = nil
}

// rest returns false if nobody wants the reader to rest: then the error is its own.
func (l *lull) rest() bool {
	l.mu.Lock()
	heldC, goC := l.heldC, l.goC
	l.mu.Unlock()
	if goC == nil {
		return false
	}
	close(heldC)
	<-goC
	return true
}

func (l *lull) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	if l.goC != nil {
		close(l.heldC)
		l.goC = nil
	}
}
