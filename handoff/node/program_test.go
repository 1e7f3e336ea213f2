package node

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"rrd/handoff"
)

// How Node puts what programs ask for, and how they hear that it failed.
func TestNodeQueries(t *testing.T) {
	r := startNode(t, Config{}, `
process.chdir('/tmp');
const net = require('net'), dgram = require('dgram'), https = require('https');
const tell = s => s.on('error', e => process.send(e.code));
for (const o of [{port: 1}, {port: 1, ipv6Only: true, host: '::'}, {port: 1, host: '::'}, {port: 1, host: '::1'},
  {port: 1, host: '127.0.0.1', backlog: 5}, {port: 0}, {port: 0}, {path: '/run/a.sock', readableAll: true},
  {path: 'b.sock', writableAll: true}, {path: '\0name'}, {fd: 5}]) {
  tell(net.createServer()).listen(o);
}
tell(https.createServer({ticketKeys: Buffer.alloc(48, 1)})).listen(443);
tell(dgram.createSocket('udp4')).bind(53);
tell(dgram.createSocket('udp6')).bind(53, '::1');
tell(dgram.createSocket('udp6')).bind(53);
tell(dgram.createSocket({type: 'udp6', ipv6Only: true, reuseAddr: true})).bind(53);
`)
	F := func(f handoff.Frame, target string) string {
		f = listen(f, target)
		return fmt.Sprintf("%s %d %d %d %s", f.Payload, f.Listener, f.Arg, f.Flags, f.Data)
	}
	type f = handoff.Frame
	want := map[string]bool{
		F(f{}, "tcp :1"): true, F(f{}, "tcp6 [::]:1"): true, F(f{}, "tcp [::]:1"): true, F(f{}, "tcp6 [::1]:1"): true,
		F(f{Arg: 5}, "tcp4 127.0.0.1:1"): true, F(f{}, "tcp :0"): true, F(f{Listener: 1}, "tcp :0"): true,
		F(f{Flags: handoff.ListenReadable}, "unix /run/a.sock"): true, F(f{Flags: handoff.ListenWritable}, "unix /tmp/b.sock"): true,
		F(f{}, "unix @name"): true, F(f{}, "fd 5"): true,
		F(f{Data: []byte(`{"ticketKeys":"` + strings.Repeat("01", 48) + `"}`)}, "tcp :443"): true,
		F(f{}, "udp4 0.0.0.0:53"): true, F(f{}, "udp6 [::1]:53"): true, F(f{}, "udp [::]:53"): true,
		F(f{Flags: handoff.ListenReuse}, "udp6 [::]:53"): true,
	}
	n := len(want)
	for range n {
		q := r.want(handoff.Listen)
		got := fmt.Sprintf("%s %d %d %d %s", q.Payload, q.Listener, q.Arg, q.Flags, q.Data)
		if !want[got] {
			t.Errorf("asked for %q", got)
		}
		delete(want, got)
		r.answer(handoff.Frame{Type: handoff.Listening, Seq: q.Seq, Arg: uint32(unix.EADDRINUSE), Data: q.Data}, handoff.FD{})
	}
	if len(want) > 0 {
		t.Errorf("did not ask for %v", want)
	}
	r.answer(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	r.wantEnd(0)
	if got := strings.Join(r.said, ""); got != strings.Repeat(`"EADDRINUSE"`, n) {
		t.Errorf("programs heard %s", got)
	}
}

// The ways in which a worker leaves of its own accord.
func TestNodeLeaves(t *testing.T) {
	for how, c := range map[string]struct {
		code   int
		frames []handoff.Type
	}{
		"cluster.worker.disconnect()": {0, []handoff.Type{handoff.Leave, handoff.Bye}},
		"cluster.worker.kill()":       {0, []handoff.Type{handoff.Bye}},
		"process.disconnect()":        {0, nil},
		"process.exit(7)":             {7, nil},
	} {
		t.Run(how, func(t *testing.T) {
			r := startNode(t, Config{}, hello+`
const cluster = require('cluster');
server.listen(8080);
server.on('request', () => `+how+`);
`)
			r.serve(7)
			r.want(handoff.Ready)
			fmt.Fprint(r.hand(1, 7), "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			for _, want := range c.frames {
				r.want(want)
			}
			if len(c.frames) > 0 {
				_, d := client(t)
				r.Add(2, 7, 0, d)
				if err := r.Flush(); !isErrno(err, unix.EPIPE) {
					t.Errorf("a handoff to one who leaves: %v", err)
				}
			}
			r.wantEnd(c.code)
		})
	}
}

// Two servers on one listener: the second is told that the address is in use, and
// the worker lives on.
func TestNodeSecondServer(t *testing.T) {
	r := startNode(t, Config{ReadyOnMessage: true}, hello+`
server.listen(8080, () => {
  const second = require('net').createServer();
  second.on('error', e => { process.send(e.code); process.send('ready') });
  second.listen(8080);
});
`)
	r.serve(7)
	r.serve(7)
	r.want(handoff.Ready)
	if len(r.said) != 2 || r.said[0] != `"EADDRINUSE"` {
		t.Errorf("said %q", r.said)
	}
	if got := get(t, r.hand(1, 7)); got != "hello" {
		t.Errorf("served %q", got)
	}
}

func TestNodeRejects(t *testing.T) {
	r := startNode(t, Config{}, `
const server = require('net').createServer(c => c.on('data', d => d == 'close' ? server.close() : c.end(d)));
server.maxConnections = 1;
server.listen(8080);
`)
	r.serve(7)
	r.want(handoff.Ready)
	first := r.hand(1, 7)
	_, d := client(t)
	r.Add(2, 7, 0, d)
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if f := r.want(handoff.Reject); f.Seq != 2 || handoff.Reason(f.Arg) != handoff.ReasonBusy {
		t.Errorf("got %+v", f)
	}
	fmt.Fprint(first, "close")
	r.want(handoff.Leave)
	r.Add(3, 7, 0, d)
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if f := r.want(handoff.Reject); f.Seq != 3 || handoff.Reason(f.Arg) != handoff.ReasonClosed {
		t.Errorf("got %+v", f)
	}
}

// A socket that the program sends away is acknowledged, or nothing else that it
// says would come; and what it asks about it is answered.
func TestNodeSendsSockets(t *testing.T) {
	r := startNode(t, Config{}, `
const server = require('net').createServer(c => {
  process.send({here: 'it is'}, c, () => {
    server.getConnections((err, n) => { process.send({n}); server.close(() => process.send('closed', () => process.disconnect())) });
  });
});
server.listen(8080);
`)
	r.serve(7)
	r.want(handoff.Ready)
	c := r.hand(1, 7)
	r.want(handoff.Leave)
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("somebody has the socket still: %d, %v", n, err)
	}
	r.wantEnd(0)
	if got := strings.Join(r.said, " "); got != `{"n":0} "closed"` {
		t.Errorf("said %s", got)
	}
}

// Handoffs at window 8 between messages of 3 MB.
func TestNodeLongMessages(t *testing.T) {
	r := startNode(t, Config{ReadyOnMessage: true}, `
const big = 'x'.repeat(3 << 20);
let n = 0;
const server = require('net').createServer(c => { if (++n % 50 == 0) process.send(big); c.end('hello') });
server.listen(8080, () => { process.send(big); process.send('ready') });
`)
	r.serve(7)
	r.want(handoff.Ready)
	const total, window = 500, 8
	clients := make([]net.Conn, total)
	sent, acked := uint64(0), 0
	for acked < total {
		for sent < total && sent < uint64(acked)+window && !r.Held() {
			c, d := client(t)
			clients[sent] = c
			r.Add(sent, 7, 0, d)
			if err := r.Flush(); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		if f := r.want(handoff.Ack); f.Seq != uint64(acked) {
			t.Fatalf("acked %d, want %d", f.Seq, acked)
		}
		acked++
	}
	r.answer(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	r.want(handoff.Leave)
	_ = r.Close()
	for _, c := range clients {
		var b [8]byte
		if n, err := c.Read(b[:]); string(b[:n]) != "hello" {
			t.Fatalf("served %q, %v", b[:n], err)
		}
	}
	if len(r.said) < 8 || len(r.said[0]) != maxText {
		t.Errorf("%d messages", len(r.said))
	}
}

func TestNodeSharedUDP(t *testing.T) {
	r := startNode(t, Config{}, `
const s = require('dgram').createSocket('udp4');
s.on('message', (m, from) => s.send(m + '!', from.port, from.address));
s.bind(5353, '127.0.0.1');
`)
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	d := socketOf(t, pc.(*net.UDPConn))
	defer d.Close()
	f := r.want(handoff.Listen)
	share := handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 7,
		Flags: handoff.ListeningShared | handoff.ListeningPacket, Payload: f.Payload}
	r.answer(share, d)
	r.want(handoff.Ready)
	c, err := net.Dial("udp4", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	fmt.Fprint(c, "hello")
	var b [16]byte
	if n, err := c.Read(b[:]); err != nil || string(b[:n]) != "hello!" {
		t.Errorf("got %q, %v", b[:n], err)
	}
	r.answer(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	r.want(handoff.Leave)
	r.wantEnd(0)
}

// A worker refuses what comes without its descriptor, as when it has too many
// files open.
func TestNodeLosesDescriptors(t *testing.T) {
	r := startNode(t, Config{}, hello+`
server.listen(8080, () => setImmediate(() => require('dgram').createSocket('udp4').bind(5353)));
`)
	r.serve(7)
	r.want(handoff.Ready)
	_, d := client(t)
	r.Add(1, 7, 0, d)
	if err := r.write(r.line); err != nil {
		t.Fatal(err)
	}
	r.window.push(r.batch)
	r.filled = false
	r.Conn.next++
	q := r.want(handoff.Listen)
	if f := r.want(handoff.Reject); f.Seq != 1 || handoff.Reason(f.Arg) != handoff.ReasonFDLimit {
		t.Errorf("got %+v", f)
	}
	// A shared socket comes again until it has come.
	pc, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	s := &share{fd: socketOf(t, pc.(*net.UDPConn)), seq: q.Seq, wire: 8, text: appendShared(nil, true, 8, q.Seq, nil, r.Conn.next)}
	if err := r.write(s.text); err != nil {
		t.Fatal(err)
	}
	r.window.push(handle{n: r.Conn.next, wire: 8, share: s})
	r.open = append(r.open, 8)
	for len(r.again) == 0 {
		if !await(r, r.Num(), unix.POLLIN, time.Now().Add(patience)) {
			t.Fatal("no refusal")
		}
		if f, err := drain(r.Conn); len(f) > 0 || err != nil {
			t.Fatal(f, err)
		}
	}
	if err := r.Flush(); err != nil {
		t.Fatal(err)
	}
	if got := get(t, r.hand(2, 7)); got != "hello" {
		t.Errorf("served %q", got)
	}
	r.answer(handoff.Frame{Type: handoff.Drain}, handoff.FD{})
	left := map[uint32]bool{r.want(handoff.Leave).Listener: true, r.want(handoff.Leave).Listener: true}
	if !left[7] || !left[8] || s.tries != 1 {
		t.Errorf("left %v, lost %d times", left, s.tries)
	}
	r.wantEnd(0)
}

func TestNodeSharedTCP(t *testing.T) {
	r := startNode(t, Config{}, hello+`server.listen(0)`)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	d := socketOf(t, ln.(*net.TCPListener))
	defer d.Close()
	f := r.want(handoff.Listen)
	r.answer(handoff.Frame{Type: handoff.Listening, Seq: f.Seq, Listener: 7, Flags: handoff.ListeningShared, Payload: f.Payload}, d)
	r.want(handoff.Ready)
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if got := get(t, c); got != "hello" {
		t.Errorf("served %q", got)
	}
}

func TestNodeUnixListener(t *testing.T) {
	r := startNode(t, Config{}, `
const server = require('net').createServer(c => c.end('hello'));
server.listen('/run/app.sock', () => process.send(server.address()));
`)
	r.serve(7)
	r.want(handoff.Ready)
	c := r.hand(1, 7)
	var b [8]byte
	if n, err := c.Read(b[:]); string(b[:n]) != "hello" {
		t.Errorf("served %q, %v", b[:n], err)
	}
	if len(r.said) != 1 || r.said[0] != `"/run/app.sock"` {
		t.Errorf("address %q", r.said)
	}
}
