package worker

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"

	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"testing"
	"time"

	"rrd/handoff"
)

// selfSigned makes a certificate.
func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"test"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// tickets tells a worker its keys: those of the letters, newest first.
func (m *master) tickets(letters string) {
	m.Helper()
	var keys []byte
	for _, l := range letters {
		keys = append(keys, bytes.Repeat([]byte{byte(l)}, handoff.TicketKeySize)...)
	}
	m.send(handoff.Frame{Type: handoff.Tickets, Seq: 1, Arg: uint32(len(letters)), Payload: keys})
}

// configured is a config of a worker whose master has the keys.
func (m *master) configured(ch *channel, cfg *tls.Config, letters string) *tls.Config {
	m.Helper()
	c := later(func() (*tls.Config, error) { return ch.tlsConfig(cfg), nil })
	m.expect(handoff.AskTickets)
	m.tickets(letters)
	got, err := wait(m.TB, c)
	if err != nil {
		m.Fatal(err)
	}
	return got
}

// resumes makes a connection to a server with cfg and reports whether the session of
// the cache went on.
func resumes(t *testing.T, cfg *tls.Config, cache tls.ClientSessionCache) bool {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0") // a net.Pipe has no buffer: both ends would write
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	near, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	_ = near.SetDeadline(time.Now().Add(patience))
	server := later(func() (int, error) {
		defer far.Close()
		return tls.Server(far, cfg).Write([]byte("x"))
	})
	c := tls.Client(near, &tls.Config{InsecureSkipVerify: true, ServerName: "test", ClientSessionCache: cache})
	if err := c.HandshakeContext(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil { // and the ticket
		t.Fatal(err)
	}
	_ = near.Close()
	if _, err := wait(t, server); err != nil {
		t.Fatal(err)
	}
	return c.ConnectionState().DidResume
}

// A session goes on at every worker that has the keys, also after a rotation, and
// whatever became of the config.
func TestSessionsResume(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			base := &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}, MinVersion: version, MaxVersion: version}
			m, other := newMaster(t), newMaster(t)
			ch := m.worker(handoff.HelloTickets)
			cfg := m.configured(ch, base, "a")
			clone := cfg.Clone() // as http.Server.ServeTLS makes one
			otherCh := other.worker(handoff.HelloTickets)
			otherCfg := other.configured(otherCh, base, "a")
			if base.WrapSession != nil {
				t.Error("the config of the program was changed")
			}

			cache := tls.NewLRUClientSessionCache(1)
			for i, c := range []*tls.Config{cfg, otherCfg, clone, cfg} {
				if resumes(t, c, cache) != (i > 0) {
					t.Errorf("connection %d: resumed %v", i, i == 0)
				}
			}
			m.tickets("ba")
			m.barrier()
			if !resumes(t, cfg, cache) {
				t.Error("not resumed after the rotation")
			}
			// The ticket is now of key b, which the other does not have yet.
			if resumes(t, otherCfg, cache) {
				t.Error("resumed without the key")
			}
			other.tickets("ba")
			other.barrier()
			for _, c := range []*tls.Config{otherCfg, clone, cfg} {
				if !resumes(t, c, cache) {
					t.Error("not resumed")
				}
			}
			m.tickets("edc") // a and b are gone
			m.barrier()
			for _, c := range []*tls.Config{clone, cfg} {
				if resumes(t, c, tls.NewLRUClientSessionCache(1)) || resumes(t, c, cache) != (c == cfg) {
					t.Error("resumed with a key that is gone, or not with the new one")
				}
			}
		})
	}
}

// A Config of GetConfigForClient has the master's keys too, and so has a second clone.
func TestSessionsResumeWithGetConfigForClient(t *testing.T) {
	inner := &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}
	m := newMaster(t)
	ch := m.worker(handoff.HelloTickets)
	cfg := m.configured(ch, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return inner.Clone(), nil },
	}, "a")
	second := ch.tlsConfig(inner) // the keys are there: nothing is asked
	cache := tls.NewLRUClientSessionCache(1)
	for i, c := range []*tls.Config{cfg, second, cfg} {
		if resumes(t, c, cache) != (i > 0) {
			t.Errorf("connection %d: resumed %v", i, i == 0)
		}
	}
	m.tickets("ba")
	m.barrier()
	for _, c := range []*tls.Config{cfg, second, cfg} {
		if !resumes(t, c, cache) {
			t.Error("not resumed after the rotation")
		}
	}
	m.barrier()
	if len(m.got) > 0 {
		t.Errorf("also says %v", m.got)
	}
}

func isPlain(cfg *tls.Config) bool {
	return cfg.WrapSession == nil && cfg.UnwrapSession == nil && cfg.ServerName == "name"
}

// An older master, or one that hands out none, is asked nothing.
func TestTLSConfigWithoutAnOffer(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(handoff.HelloTouches)
	if cfg := ch.tlsConfig(&tls.Config{ServerName: "name"}); !isPlain(cfg) {
		t.Error("not a plain clone")
	}
	if m.barrier(); len(m.got) > 0 {
		t.Errorf("says %v", m.got)
	}
}

// Keys that come late are taken as well.
func TestTLSConfigDoesNotWaitForEver(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(handoff.HelloTickets)
	ch.keyTime = 5 * time.Millisecond
	cfg := ch.tlsConfig(&tls.Config{Certificates: []tls.Certificate{selfSigned(t)}})
	m.expect(handoff.AskTickets)
	cache := tls.NewLRUClientSessionCache(1)
	if resumes(t, cfg, cache) || !resumes(t, cfg, cache) {
		t.Error("does not resume with keys of its own")
	}
	m.tickets("a")
	m.barrier()
	if resumes(t, cfg, cache) || !resumes(t, cfg, cache) {
		t.Error("does not resume with the master's keys")
	}
}

func TestTLSConfigThenTheMasterDies(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(handoff.HelloTickets)
	c := later(func() (*tls.Config, error) { return ch.tlsConfig(&tls.Config{ServerName: "name"}), nil })
	m.expect(handoff.AskTickets)
	m.die()
	if cfg, _ := wait(t, c); !isPlain(cfg) {
		t.Error("not a plain clone")
	}
	if cfg := ch.tlsConfig(&tls.Config{ServerName: "name"}); !isPlain(cfg) {
		t.Error("not a plain clone, asked again")
	}
}

// What is no set of keys is not taken for one.
func TestBadTickets(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(handoff.HelloTickets)
	cfg := m.configured(ch, &tls.Config{Certificates: []tls.Certificate{selfSigned(t)}}, "a")
	cache := tls.NewLRUClientSessionCache(1)
	resumes(t, cfg, cache)
	for _, f := range []handoff.Frame{{}, {Arg: 1}, {Arg: 2, Payload: make([]byte, 32)}, {Arg: 4, Payload: make([]byte, 128)}} {
		f.Type = handoff.Tickets
		m.send(f)
	}
	m.barrier()
	if !resumes(t, cfg, cache) {
		t.Error("the keys are others")
	}
}

func TestTLSConfigOutsideRRD(t *testing.T) {
	if cfg := TLSConfig(&tls.Config{ServerName: "name"}); !isPlain(cfg) {
		t.Error("not a plain clone")
	}
	if TLSConfig(nil) == nil {
		t.Error("nil")
	}
}

// Frames are written in the version of the older end.
func TestVersionOfFrames(t *testing.T) {
	m := newMaster(t)
	ch := m.worker(0)
	ch.version = 1
	ch.mu.Lock()
	defer ch.mu.Unlock()
	ch.writeLocked(&handoff.Frame{Type: handoff.Drained})
	if !strings.HasPrefix(string(ch.out), "RRD\x01") {
		t.Errorf("%q", ch.out[:4])
	}
}
