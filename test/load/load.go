package load

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Config says what to open. The zero value of every field but Address is usable.
type Config struct {
	Network string // "tcp", "unix"; empty: "tcp"
	Address string

	// Rate is the connections started each second, on a schedule that is fixed in
	// advance; it needs a Total or a Duration. 0: Clients of a closed loop.
	Rate    float64
	Clients int // 0: 1

	// Total is how many connections to open, Duration how long to open new ones;
	// whichever is over first. Both 0: one connection.
	Total    int
	Duration time.Duration

	// Timeout is for all of one connection. 0: 20 s.
	Timeout time.Duration

	// URI is asked for by connection i, from 0; the id is added as a query. nil: "/".
	URI func(i int) string
	TLS *tls.Config // nil: none

	// Judge looks at a complete answer. nil: BuiltIn.
	Judge Judge

	// MaxOpen bounds how many connections of an open loop are open at a time; those
	// that wait for it are late, and charged for it. 0: 4096.
	MaxOpen int
}

// perSource is how many connections share one source address. About 28,000 ports
// are there for each, and ports in TIME_WAIT are not free at once.
const perSource = 20_000

type run struct {
	cfg    Config
	dialer []net.Dialer // one for each source address
	prefix [8]byte      // of the ids of this run
	start  time.Time

	next atomic.Int64

	mu      sync.Mutex
	results []Result
}

// Run opens the connections and returns when the last one has ended. A cancelled
// ctx opens no more, and does not end those that are open.
func Run(ctx context.Context, cfg Config) *Report {
	if cfg.Network == "" {
		cfg.Network = "tcp"
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 20 * time.Second
	}
	if cfg.Total == 0 && cfg.Duration == 0 {
		cfg.Total = 1
	}
	if cfg.URI == nil {
		cfg.URI = func(int) string { return "/" }
	}
	if cfg.Judge == nil {
		cfg.Judge = BuiltIn
	}
	if cfg.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cfg.Duration)
		defer cancel()
	}
	r := &run{cfg: cfg, dialer: dialers(cfg)}
	if _, err := rand.Read(r.prefix[:]); err != nil {
		panic(err) // documented never to happen
	}
	r.start = time.Now()
	if cfg.Rate > 0 {
		r.open(ctx)
	} else {
		r.closed(ctx)
	}
	report := newReport(r.results, time.Since(r.start))
	report.Began = r.start
	return report
}

// closed runs the clients of a closed loop and waits for them.
func (r *run) closed(ctx context.Context) {
	var clients sync.WaitGroup
	for range max(r.cfg.Clients, 1) {
		clients.Go(func() {
			for ctx.Err() == nil {
				i := int(r.next.Add(1)) - 1
				if r.cfg.Total > 0 && i >= r.cfg.Total {
					return
				}
				r.keep(r.one(i, time.Since(r.start)))
			}
		})
	}
	clients.Wait()
}

// open starts connections by the schedule and waits for them.
func (r *run) open(ctx context.Context) {
	limit := r.cfg.MaxOpen
	if limit == 0 {
		limit = 4096
	}
	slots := make(chan struct{}, limit)
	var connections sync.WaitGroup
	defer connections.Wait()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for i := 0; r.cfg.Total == 0 || i < r.cfg.Total; i++ {
		due := time.Duration(float64(i) / r.cfg.Rate * float64(time.Second))
		if wait := due - time.Since(r.start); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-ctx.Done():
				return
			}
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		connections.Go(func() {
			r.keep(r.one(i, due))
			<-slots
		})
	}
}

func (r *run) keep(res Result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.results = append(r.results, res)
}

// id is 16 bytes as hexadecimal digits: 8 of the run, 8 of the connection.
func (r *run) id(i int) string {
	var raw [16]byte
	copy(raw[:], r.prefix[:])
	binary.BigEndian.PutUint64(raw[8:], uint64(i))
	return hex.EncodeToString(raw[:])
}

func withID(uri, id string) string {
	if strings.Contains(uri, "?") {
		return uri + "&id=" + id
	}
	return uri + "?id=" + id
}

// buffers holds what answers are read into.
var buffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// one opens a connection, asks, and reads to its end.
func (r *run) one(i int, scheduled time.Duration) Result {
	res := Result{Seq: i, Scheduled: scheduled, Slot: -1}
	res.URI = withID(r.cfg.URI(i), r.id(i))
	res.Started = time.Since(r.start)
	res.Outcome, res.Err = r.converse(i, &res)
	res.Ended = time.Since(r.start)
	if res.Answered == 0 {
		res.Answered = res.Ended
	}
	return res
}

func (r *run) converse(i int, res *Result) (Outcome, error) {
	dialer := &r.dialer[i/perSource%len(r.dialer)]
	ctx, cancel := context.WithTimeout(context.Background(), r.cfg.Timeout)
	defer cancel()
	c, err := dialer.DialContext(ctx, r.cfg.Network, r.cfg.Address)
	if err != nil {
		return classifyDial(err), err
	}
	res.Connected = time.Since(r.start)
	defer c.Close()
	res.Local = c.LocalAddr().String()
	if err := c.SetDeadline(time.Now().Add(r.cfg.Timeout)); err != nil {
		return Client, err
	}
	if r.cfg.TLS != nil {
		c = tls.Client(c, r.cfg.TLS)
	}
	request := "GET " + res.URI + " HTTP/1.1\r\nHost: ledger\r\nConnection: close\r\n\r\n"
	if _, err := c.Write([]byte(request)); err != nil {
		return classify(err), err
	}
	buf := buffers.Get().(*[16 << 10]byte)
	defer buffers.Put(buf)
	return r.read(c, buf[:], res)
}

// read takes in the answer and then the end of the stream.
func (r *run) read(c net.Conn, buf []byte, res *Result) (Outcome, error) {
	var a answer
	n := 0
	for {
		k, err := c.Read(buf[n:])
		n += k
		if !a.headed && !a.head(buf[:n]) && n == len(buf) {
			return Wrong, fmt.Errorf("no end of the header in %d bytes", n)
		}
		if a.bad != nil {
			return Wrong, a.bad
		}
		if a.headed && res.Answered == 0 && n-a.body+a.skipped >= a.length {
			res.Answered = time.Since(r.start)
		}
		if err != nil {
			if !a.headed || n-a.body+a.skipped < a.length {
				return classify(err), fmt.Errorf("after %d bytes: %w", n+a.skipped, err)
			}
			if class := classify(err); class != Empty { // no proper end
				return class, fmt.Errorf("after the answer: %w", err)
			}
			break
		}
		if n == len(buf) { // a long body: only its length counts
			a.skipped += n - a.body
			n = a.body
		}
	}
	if extra := n - a.body + a.skipped - a.length; extra > 0 {
		return Duplicate, fmt.Errorf("%d bytes behind the answer: %.100q", extra, buf[max(a.body, n-extra):n])
	}
	if a.skipped > 0 {
		return OK, nil
	}
	if err := r.cfg.Judge(Answer{Status: a.status, Worker: a.worker, Body: buf[a.body:n]}, res); err != nil {
		return Wrong, err
	}
	return OK, nil
}
