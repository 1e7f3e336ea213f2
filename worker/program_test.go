package worker

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"rrd/handoff"
	"rrd/test/leakcheck"
)

// Programs as they are written: nothing in them knows of rrd but the listener.

// serve runs an http.Server on ln until the test ends.
func serve(t *testing.T, ln net.Listener, h http.Handler) *http.Server {
	t.Helper()
	srv := &http.Server{Handler: h}
	served := later(func() (int, error) { return 0, srv.Serve(ln) })
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		if _, err := wait(t, served); err != http.ErrServerClosed {
			t.Errorf("Serve ends with %v", err)
		}
	})
	return srv
}

// via is an http.Client whose connections are handed off to listener 1.
func via(t *testing.T, m *master) *http.Client {
	tr := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) {
			client, _ := m.handOff(1)
			return client, nil
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: patience}
}

func get(t *testing.T, client *http.Client, url string) string {
	t.Helper()
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHTTPKeepAlive(t *testing.T) {
	leakcheck.Check(t)
	m := newMaster(t)
	ln := m.listen(m.worker(handoff.HelloTouches), 1)
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.RemoteAddr)
	}))
	client := via(t, m)
	first := get(t, client, "http://x/")
	for range 10 {
		if again := get(t, client, "http://x/"); again != first {
			t.Errorf("connection %s, then %s", first, again)
		}
	}
	client.CloseIdleConnections()
	if next := get(t, client, "http://x/"); next == first {
		t.Error("the connection was not closed")
	}
	// READY, and ACK and TOUCHED for each of the two connections.
	for _, seq := range []uint64{1, 2} {
		for _, typ := range []handoff.Type{handoff.Ack, handoff.Touched} {
			if !m.until(typ, seq) {
				t.Errorf("no %v(%d)", typ, seq)
			}
		}
	}
}

// net/http never lets a connection lie, however long its handlers take.
func TestHTTPManyConnections(t *testing.T) {
	m := newMaster(t)
	ln := m.listen(m.worker(0), 1)
	release := make(chan struct{})
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { <-release }))
	const n = 50
	var answers []<-chan result[string]
	for range n {
		client, _ := m.handOff(1)
		answers = append(answers, later(func() (string, error) {
			if _, err := io.WriteString(client, "GET / HTTP/1.0\r\n\r\n"); err != nil {
				return "", err
			}
			b, err := io.ReadAll(client)
			return string(b), err
		}))
	}
	m.expect(handoff.Ready)
	for range n {
		m.expect(handoff.Ack) // all, while every handler still runs
	}
	close(release)
	for _, c := range answers {
		if got, err := wait(t, c); err != nil || !strings.HasPrefix(got, "HTTP/1.0 200") {
			t.Errorf("%q %v", got, err)
		}
	}
}

func TestHTTPDrainFinishesTheRequest(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := m.listen(ch, 1)
	entered, release := make(chan struct{}), make(chan struct{})
	srv := serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		fmt.Fprint(w, "done")
	}))
	client := via(t, m)
	answer := later(func() (string, error) {
		resp, err := client.Get("http://x/")
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	})
	<-entered
	m.send(handoff.Frame{Type: handoff.Drain})
	<-ch.drainC
	srv.SetKeepAlivesEnabled(false) // as a program does that watches Draining
	close(release)
	if got, err := wait(t, answer); got != "done" || err != nil {
		t.Errorf("%q %v", got, err)
	}
	m.expect(handoff.Ready)
	m.expect(handoff.Ack)
	m.expect(handoff.Drained)
}

func TestTLS(t *testing.T) {
	leakcheck.Check(t)
	m := newMaster(t)
	ln := m.listen(m.worker(handoff.HelloTouches), 1)
	cfg := &tls.Config{Certificates: []tls.Certificate{certificate(t)}}
	big := bytes.Repeat([]byte("x"), 1<<20)
	serve(t, tls.NewListener(ln, cfg), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(big)
	}))
	client := via(t, m)
	if got := get(t, client, "https://x/"); len(got) != len(big) {
		t.Errorf("%d bytes", len(got))
	}
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// limited is what netutil.LimitListener does: no Accept while n are open.
type limited struct {
	net.Listener
	slots chan struct{}
}

func (ln *limited) Accept() (net.Conn, error) {
	ln.slots <- struct{}{}
	c, err := ln.Listener.Accept()
	if err != nil {
		<-ln.slots
		return nil, err
	}
	return &limitedConn{Conn: c, slots: ln.slots}, nil
}

type limitedConn struct {
	net.Conn
	slots chan struct{}
	once  sync.Once
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.slots })
	return err
}

// What a program cannot take goes back, and comes again when it can.
func TestLimitListenerStrandsNothing(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ln := &limited{Listener: m.listen(ch, 1), slots: make(chan struct{}, 1)}
	c := accept(t, ln)
	m.expect(handoff.Ready)
	m.handOff(1)
	first := accepted(t, c)
	m.expect(handoff.Ack)
	c = accept(t, ln) // waits for its slot, not for a connection
	setTakeTime(ch, takeTime)
	client, seq := m.handOff(1)
	m.expectReject(seq, handoff.ReasonBusy)
	setTakeTime(ch, time.Hour)
	_ = first.Close()
	m.expect(handoff.Again)
	m.c.Add(seq, 1, 0, *m.copies[seq])
	m.flush()
	second := accepted(t, c)
	exchange(t, client, second)
	_ = second.Close()
}
