package pool

import "sync"

// mailbox is a queue of calls for one goroutine to make. Posting never waits, so
// the pool's loop, the hooks and whoever reports about workers can never wait for
// each other in a ring. What is posted is bounded by the starts of processes: a few
// calls for each.
type mailbox struct {
	wakeC chan struct{} // holds one token while the queue may be filled

	mu     sync.Mutex
	queue  []func()
	closed bool
}

func newMailbox() *mailbox { return &mailbox{wakeC: make(chan struct{}, 1)} }

// post appends f. After close nothing is taken any more.
func (m *mailbox) post(f func()) {
	m.mu.Lock()
	if !m.closed {
		m.queue = append(m.queue, f)
	}
	m.mu.Unlock()
	m.wake()
}

// take empties the queue and tells whether there can be more.
func (m *mailbox) take() (queue []func(), closed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue, m.queue = m.queue, nil
	return queue, m.closed
}

func (m *mailbox) close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.wake()
}

func (m *mailbox) wake() {
	select {
	case m.wakeC <- struct{}{}:
	default: // it will look anyway
	}
}

// deliver makes the calls until the mailbox is closed and empty.
func (m *mailbox) deliver() {
	for {
		queue, closed := m.take()
		for _, f := range queue {
			f()
		}
		if closed && len(queue) == 0 {
			return
		}
		if !closed {
			<-m.wakeC
		}
	}
}
