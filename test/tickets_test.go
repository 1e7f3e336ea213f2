//go:build linux

package test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
)

// tlsClient has one session.
type tlsClient struct {
	address string
	cache   tls.ClientSessionCache
}

// ask makes a connection and a request on it.
func (c *tlsClient) ask() (resumed bool, err error) {
	raw, err := net.Dial("tcp", c.address)
	if err != nil {
		return false, err
	}
	defer raw.Close()
	_ = raw.SetDeadline(time.Now().Add(harness.Patience))
	conn := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, ServerName: "test", ClientSessionCache: c.cache})
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"); err != nil {
		return false, err
	}
	if b, err := io.ReadAll(conn); err != nil || !strings.HasPrefix(string(b), "HTTP/1.1 200") {
		return false, fmt.Errorf("%q, %w", b, err)
	}
	return conn.ConnectionState().DidResume, nil
}

// resumed is how many of the clients go on with their session.
func resumed(t *testing.T, clients []*tlsClient) (n int) {
	t.Helper()
	var all sync.WaitGroup
	var mu sync.Mutex
	for _, c := range clients {
		all.Go(func() {
			again, err := c.ask()
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if again {
				n++
			}
		})
	}
	all.Wait()
	return n
}

// Whatever becomes of the worker that has made a session: it goes on at any other.
func TestTLSSessionsResumeOnEveryWorker(t *testing.T) {
	for _, policy := range []string{"rr", "none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := faulty(t, 4, append([]string{"--policy", policy, "--tls-ticket-rotate", "4s", "--canary-time", "10ms"}, quick...), "tls")
			var clients []*tlsClient
			for range 16 {
				clients = append(clients, &tlsClient{m.Addr(), tls.NewLRUClientSessionCache(1)})
			}
			want := func(when string, want int) {
				t.Helper()
				if n := resumed(t, clients); n != want {
					t.Errorf("%s: %d of %d sessions resumed, want %d", when, n, len(clients), want)
				}
			}
			want("at first", 0)
			want("again", len(clients))
			mark := m.Mark()
			m.Kill(m.PID(0), syscall.SIGKILL)
			m.WaitFrom(mark, 1, harness.Named("worker.ready"))
			want("after a worker's death", len(clients))
			mark = m.Mark()
			m.Signal(syscall.SIGHUP)
			m.WaitFrom(mark, 1, harness.Named("reload.done"))
			want("after a reload", len(clients))
			if policy != "rr" {
				m.AllReady()
				m.Rebase()
				return
			}
			mark = m.Mark()
			m.Signal(syscall.SIGUSR2)
			m.WaitFrom(mark, 1, harness.Named("upgrade.done"))
			want("after an upgrade in place", len(clients))
			m.WaitFrom(mark, 1, harness.Named("tickets.rotate"))
			want("after a rotation", len(clients))
			m.AllReady()
			m.Rebase()
		})
	}
}

func TestTicketsAreOff(t *testing.T) {
	t.Parallel()
	m := faulty(t, 2, []string{"--tls-ticket-rotate", "off"}, "tls")
	clients := []*tlsClient{{m.Addr(), tls.NewLRUClientSessionCache(1)}}
	for range 3 {
		resumed(t, clients) // by chance perhaps
	}
	if n := len(m.Events(harness.Named("tickets.rotate"))); n > 0 {
		t.Errorf("%d keys were made", n)
	}
}

// The keys are nowhere but in the worker that has asked.
func TestTicketKeysStaySecret(t *testing.T) {
	t.Parallel()
	ledger := filepath.Join(t.TempDir(), "keys")
	at := harness.Host() + ":0"
	m := harness.Start(t, harness.Options{
		Args:    append([]string{"--workers", "1", "--log-level", "debug", "--tls-ticket-rotate", "1s"}, quick...),
		Listen:  []string{at},
		Control: true,
		Command: []string{harness.Build(t, "", "rrd/test/faultworker"), "-listen", "tcp/" + at, "-ledger", ledger, "serve:keys"},
	})
	m.WaitFrom(0, 2, harness.Named("tickets.rotate"))
	mark := m.Mark()
	m.Signal(syscall.SIGUSR2)
	m.WaitFrom(mark, 1, harness.Named("upgrade.done"))
	m.AllReady()
	m.Rebase()
	var keys [][]byte
	harness.Poll(t, "keys in the ledger", func() error {
		text, err := os.ReadFile(ledger)
		if err != nil {
			return err
		}
		keys = nil
		for line := range strings.Lines(string(text)) {
			if all, ok := strings.CutPrefix(strings.TrimSpace(line), "# keys "); ok {
				b, err := hex.DecodeString(all)
				if err != nil {
					return err
				}
				for ; len(b) > 0; b = b[32:] {
					keys = append(keys, b[:32])
				}
			}
		}
		if len(keys) < 3 { // one, then two
			return fmt.Errorf("%d keys", len(keys))
		}
		return nil
	})
	m.Signal(syscall.SIGUSR1)
	m.Wait(harness.Named("dump.goroutine"))
	texts := map[string]string{"log": m.Log(), "stdout": m.Stdout()}
	for _, path := range []string{"/status.json", "/metrics", "/"} {
		status, body, err := m.Get(path)
		if err != nil || status != http.StatusOK {
			t.Fatal(path, status, err)
		}
		texts[path] = body
	}
	for _, args := range [][]string{{"status"}, {"-o", "json", "status"}, {"config"}, {"events"}, {"debug", "goroutines"}, {"debug", "fds"}} {
		r := m.Ctl(args...)
		texts[strings.Join(args, " ")] = r.Out + r.Err
	}
	for where, text := range texts {
		for _, key := range keys {
			for _, form := range []string{string(key), hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key), fmt.Sprint(key), fmt.Sprintf("%q", key)} {
				if strings.Contains(text, strings.Trim(form, `"[]=`)) {
					t.Errorf("a key is in %s", where)
				}
			}
		}
	}
}
