package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// start runs the program until the test ends and returns the address it printed.
func start(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	doneC := make(chan error, 1)
	go func() { // waited for in the cleanup
		err := run(ctx, args, w)
		_ = w.CloseWithError(io.EOF)
		doneC <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-doneC; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		t.Fatalf("read address: %v", err)
	}
	return strings.TrimSpace(line)
}

func get(t *testing.T, tr *http.Transport, url string) string {
	t.Helper()
	client := &http.Client{Transport: tr, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
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

const want = "in rrd: false\n"

func TestAlone(t *testing.T) {
	addr := start(t, "-addr", "127.0.0.1:0")
	if got := get(t, &http.Transport{}, "http://"+addr); !strings.HasSuffix(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestAloneUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	start(t, "-network", "unix", "-addr", path)
	tr := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}
	if got := get(t, tr, "http://x"); !strings.HasSuffix(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestAloneTLS(t *testing.T) {
	addr := start(t, "-addr", "127.0.0.1:0", "-cert", certificate(t))
	tr := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}
	if got := get(t, tr, "https://"+addr); !strings.HasSuffix(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestErrors(t *testing.T) {
	for _, args := range [][]string{
		{"-addr", "127.0.0.1:x"},
		{"-network", "udp"},
		{"-addr", "127.0.0.1:0", "-cert", "/no/such/file"},
	} {
		if err := run(context.Background(), args, io.Discard); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

func certificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	cert, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})...)
	path := filepath.Join(t.TempDir(), "pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
