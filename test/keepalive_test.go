//go:build linux

package test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
)

// Clients that keep their connection, send a request at least every 100 ms and look at
// nothing before they write lose no request in a roll, under every policy.
func TestKeepAliveClientsLoseNothing(t *testing.T) {
	for _, policy := range []string{"rr", "none", "reuseport"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			m := harness.Start(t, harness.Options{Args: []string{"--policy", policy, "--workers", "2", "--canary-time", "50ms"}})
			address := m.Addr()
			var clients sync.WaitGroup
			var stopped atomic.Bool
			var ended atomic.Int64 // connections, by an answer that said so
			const number = 20
			end := sync.OnceFunc(func() { stopped.Store(true); clients.Wait() })
			defer end() // also if a wait below fails
			for range number {
				clients.Go(func() {
					for !stopped.Load() {
						n, last, err := keepAlive(address, &stopped)
						if err != nil {
							t.Errorf("request %d of its connection: %v", n+1, err)
						}
						if last {
							ended.Add(1)
						}
					}
				})
			}
			for range 3 {
				mark := m.Mark()
				m.Signal(syscall.SIGHUP)
				m.WaitFrom(mark, 1, harness.Named("reload.done"))
			}
			end()
			if n := ended.Load(); n < number { // all those of the first roll
				t.Errorf("%d connections were asked to end, want at least %d", n, number)
			}
		})
	}
}

// keepAlive sends requests on one connection until an answer is the last one. n is how many
// were answered.
func keepAlive(address string, stopped *atomic.Bool) (n int, last bool, err error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return 0, false, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(harness.Patience))
	r := bufio.NewReader(c)
	for ; !stopped.Load(); n++ {
		last, err = askOn(c, r)
		if last || err != nil {
			return n, last, err
		}
		time.Sleep(40 * time.Millisecond) // the client's own pace
	}
	return n, false, nil
}

func askOn(c net.Conn, r *bufio.Reader) (last bool, err error) {
	if _, err := io.WriteString(c, "GET /sleep?ms=5 HTTP/1.1\r\nHost: test\r\n\r\n"); err != nil {
		return false, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return false, err
	}
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("status %s", resp.Status)
	}
	return resp.Close, nil
}

// Idle clients hold no stop.
func TestStopWithIdleClients(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{Args: []string{"--policy", "rr", "--workers", "2"}})
	for range 100 {
		c, err := net.Dial("tcp", m.Addr())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := askOn(c, bufio.NewReader(c)); err != nil {
			t.Fatal(err)
		}
	}
	if took := m.Stop(); took > 3*time.Second { // alone on a machine: 0.5 s
		t.Errorf("the stop took %v", took)
	}
}
