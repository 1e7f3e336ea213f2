//go:build linux

package test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"rrd/test/harness"
	"rrd/test/load"
)

// The program of extern/ is a user's: a module of its own, net/http and
// worker.Listen.
func userProgram(t *testing.T) string {
	t.Helper()
	return harness.Build(t, "extern", "example.org/hello")
}

// hello judges its answers, and notes the process.
func hello(inRRD bool) load.Judge {
	form := regexp.MustCompile(fmt.Sprintf(`^hello from (\d+), in rrd: %v\n$`, inRRD))
	return func(a load.Answer, res *load.Result) error {
		got := form.FindSubmatch(a.Body)
		if a.Status != 200 || got == nil {
			return fmt.Errorf("status %d, %q", a.Status, a.Body)
		}
		_, err := fmt.Sscan(string(got[1]), &res.PID)
		return err
	}
}

func TestProgram(t *testing.T) {
	pem, roots := certificate(t)
	each(t, func(t *testing.T, policy string) {
		for name, encrypted := range map[string]bool{"plain": false, "tls": true} {
			t.Run(name, func(t *testing.T) {
				at := harness.Host() + ":0"
				cfg := load.Config{Clients: 8, Total: 200, Judge: hello(true)}
				command := []string{userProgram(t), "-addr", at}
				if encrypted {
					command = append(command, "-cert", pem)
					cfg.TLS = &tls.Config{RootCAs: roots, ServerName: "rrd.test", MinVersion: tls.VersionTLS12}
				}
				m := harness.Start(t, harness.Options{
					Args: []string{"--policy", policy, "--workers", "3"}, Listen: []string{at}, Command: command,
				})
				r := serves(t, m, cfg)
				if n := len(r.ByPID()); n != 3 && policy != "none" {
					t.Errorf("%d processes served: %v", n, r.ByPID())
				}
				if s := m.Idle(); policy == "rr" && s.Acked() != 200 {
					t.Errorf("%+v", s.Listeners)
				}
			})
		}
	})
}

// Without rrd it is an ordinary program.
func TestProgramAlone(t *testing.T) {
	t.Parallel()
	pem, roots := certificate(t)
	for name, encrypted := range map[string]bool{"plain": false, "tls": true} {
		cfg := load.Config{Clients: 4, Total: 100, Judge: hello(false)}
		args := []string{"-addr", harness.Host() + ":0"}
		if encrypted {
			args = append(args, "-cert", pem)
			cfg.TLS = &tls.Config{RootCAs: roots, ServerName: "rrd.test", MinVersion: tls.VersionTLS12}
		}
		cmd := exec.Command(userProgram(t), args...)
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(stdout).ReadString('\n')
		cfg.Address = strings.TrimSpace(line)
		if err == nil {
			if r := load.Run(t.Context(), cfg); r.Count(load.OK) != 100 {
				t.Errorf("%s: %v", name, r)
			}
		}
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if werr := cmd.Wait(); err != nil || werr != nil {
			t.Errorf("%s: %v, %v", name, err, werr)
		}
	}
}

// No --listen: the worker asks, the first one binds and the others join.
func TestWorkerAsks(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		at := freePort(t)
		m := harness.Start(t, harness.Options{
			Args: []string{"--policy", policy, "--workers", "3"}, Listen: []string{}, Command: []string{userProgram(t), "-addr", at},
		})
		if got := m.Addr(); got != at {
			t.Errorf("listening on %s, asked for %s", got, at)
		}
		r := serves(t, m, load.Config{Address: at, Clients: 8, Total: 200, Judge: hello(true)})
		if n := len(r.ByPID()); n != 3 && policy != "none" {
			t.Errorf("%d processes served: %v", n, r.ByPID())
		}
		if n := len(m.Events(harness.Named("listener.open"))); n != 1 {
			t.Errorf("%d listeners were opened", n)
		}
	})
}

// Port 0 is resolved once, for all of them.
func TestWorkerAsksForAnyPort(t *testing.T) {
	t.Parallel()
	m := harness.Start(t, harness.Options{
		Args: []string{"--policy", "rr", "--workers", "3"}, Listen: []string{}, Command: []string{userProgram(t), "-addr", harness.Host() + ":0"},
	})
	if r := serves(t, m, load.Config{Total: 30, Judge: hello(true)}); len(r.ByPID()) != 3 {
		t.Errorf("%v", r.ByPID())
	}
	m.WaitStdout("\n")
	for line := range strings.Lines(m.Stdout()) {
		if strings.TrimSpace(line) != m.Addr() {
			t.Errorf("a worker says that it listens on %s, it is %s", line, m.Addr())
		}
	}
}

// Somebody else has it: the program is told in the kernel's words, and rrd says it
// too.
func TestWorkerAsksForATakenAddress(t *testing.T) {
	each(t, func(t *testing.T, policy string) {
		ln, err := net.Listen("tcp", harness.Host()+":0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		m := harness.Run(t, harness.Options{
			Args: []string{"--policy", policy, "--workers", "2"}, Listen: []string{}, ExitCode: 3,
			Command: []string{userProgram(t), "-addr", ln.Addr().String()},
		})
		if !regexp.MustCompile(`(?m)^[^{].*address already in use`).MatchString(m.Log()) {
			t.Errorf("the program does not say that the address is in use:\n%s", m.Log())
		}
		if e := m.Wait(harness.Named("listener.refused")); !strings.Contains(e.Str("error"), "address already in use") {
			t.Errorf("%s", e.Line)
		}
	})
}

// freePort returns an address of this test's own, with a port that is free on it.
func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", harness.Host()+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// certificate returns the path of a certificate for rrd.test with its key, and who
// trusts it.
func certificate(t *testing.T) (path string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"rrd.test"},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	_ = pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: private})
	path = filepath.Join(t.TempDir(), "pem")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	roots = x509.NewCertPool()
	roots.AppendCertsFromPEM(text.Bytes())
	return path, roots
}
