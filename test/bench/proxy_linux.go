package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// The proxies: HAProxy and nginx pass bytes between the client and the same
// workers that rrd has, each on a port of its own. Both use one thread, as rrd's
// master does, and are otherwise as they come.

func proxies(program string) []kind {
	return []kind{
		proxy("HAProxy", program, func(dir, address string, workers []string) ([]string, error) {
			haproxy, err := tool("haproxy")
			if err != nil {
				return nil, err
			}
			file := filepath.Join(dir, "haproxy.cfg")
			return []string{haproxy, "-db", "-f", file}, os.WriteFile(file, []byte(haproxyConfig(address, workers)), 0o600)
		}),
		proxy("nginx", program, func(dir, address string, workers []string) ([]string, error) {
			nginx, err := tool("nginx")
			if err != nil {
				return nil, err
			}
			module, err := streamModule(nginx)
			if err != nil {
				return nil, err
			}
			file := filepath.Join(dir, "nginx.conf")
			// The prefix and -e keep it off the system's files, of which it has names built in.
			return []string{nginx, "-p", dir, "-c", file, "-e", "stderr"},
				os.WriteFile(file, []byte(nginxConfig(dir, module, address, workers)), 0o600)
		}),
	}
}

// proxy is a kind that is started behind its workers; command also writes its configuration.
func proxy(name, program string, command func(dir, address string, workers []string) ([]string, error)) kind {
	return kind{name, func(ctx context.Context, dir string, s setting) (_ *site, err error) {
		behind := &site{}
		defer func() {
			if err != nil {
				err = errors.Join(err, behind.stop())
			}
		}()
		var addresses []string
		for range s.workers {
			p, err := start(ctx, []string{filepath.Join(dir, program), anyPort}, refReady)
			if err != nil {
				return nil, err
			}
			behind.processes = append(behind.processes, p)
			behind.workers = append(behind.workers, p.cmd.Process.Pid)
			addresses = append(addresses, p.address)
		}
		if behind.address, err = freeAddress(ctx); err != nil {
			return nil, err
		}
		own, err := os.MkdirTemp(dir, name+"-")
		if err != nil {
			return nil, err
		}
		argv, err := command(own, behind.address, addresses)
		if err != nil {
			return nil, err
		}
		p, err := startSilent(ctx, argv, behind.address)
		if err != nil {
			return nil, err
		}
		behind.processes = append([]*process{p}, behind.processes...)
		pid := p.cmd.Process.Pid
		children, err := descendants(pid) // nginx has one that does the work
		behind.front = append([]int{pid}, children...)
		return behind, err
	}}
}

// startSilent runs a program that does not say when it is ready: it is when it
// can be connected to.
func startSilent(ctx context.Context, argv []string, address string) (*process, error) {
	p, _, err := begin(argv, func(string, *process) {})
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: time.Second}
	for deadline := time.Now().Add(startLimit); ; {
		c, err := dialer.DialContext(ctx, "tcp", address)
		if err == nil {
			_ = c.Close()
			return p, nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
			if time.Now().Before(deadline) {
				continue
			}
		case <-p.gone:
			err = errEnded
		case <-ctx.Done():
			err = ctx.Err()
		}
		return nil, errors.Join(err, p.stop())
	}
}

// freeAddress is one that nobody listens on now. The proxies cannot be asked which
// port they got.
func freeAddress(ctx context.Context) (string, error) {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", anyPort)
	if err != nil {
		return "", err
	}
	defer ln.Close() //nolint:errcheck // nobody has connected
	return ln.Addr().String(), nil
}

// tool finds a program, also where Debian puts servers and only root's PATH looks.
func tool(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if path := "/usr/sbin/" + name; exec.Command(path, "-v").Run() == nil {
		return path, nil
	}
	return "", fmt.Errorf("%w: make setup installs it", err)
}

func haproxyConfig(address string, workers []string) string {
	var s strings.Builder
	fmt.Fprintf(&s, `global
	nbthread 1
	maxconn 8192
defaults
	mode tcp
	timeout connect 5s
	timeout client 60s
	timeout server 60s
listen bench
	bind %s backlog 4096
	balance roundrobin
`, address)
	for i, w := range workers {
		fmt.Fprintf(&s, "\tserver worker%d %s\n", i, w)
	}
	return s.String()
}

// nginxConfig is for nginx with the stream module at this path, or built in if there is none.
func nginxConfig(dir, module, address string, workers []string) string {
	var s strings.Builder
	if module != "" {
		fmt.Fprintf(&s, "load_module %s;\n", module)
	}
	fmt.Fprintf(&s, `daemon off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid %s;
error_log stderr;
events {
	worker_connections 8192;
}
stream {
	upstream workers {
`, filepath.Join(dir, "nginx.pid"))
	for _, w := range workers {
		fmt.Fprintf(&s, "\t\tserver %s max_fails=0;\n", w)
	}
	fmt.Fprintf(&s, `	}
	server {
		listen %s backlog=4096;
		proxy_pass workers;
		proxy_timeout 60s;
	}
}
`, address)
	return s.String()
}

// streamModule is where this nginx has its stream module; empty if it is built in.
func streamModule(nginx string) (string, error) {
	text, err := exec.Command(nginx, "-V").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s -V: %w", nginx, err)
	}
	built, path := streamIn(string(text))
	if built {
		return "", nil
	}
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("nginx has no stream module: %w: make setup installs it", err)
	}
	return path, nil
}

var (
	builtIn     = regexp.MustCompile(`--with-stream( |\n|$)`)
	modulesPath = regexp.MustCompile(`--modules-path=(\S+)`)
)

// streamIn reads nginx -V.
func streamIn(version string) (built bool, path string) {
	if builtIn.MatchString(version) {
		return true, ""
	}
	dir := "modules"
	if m := modulesPath.FindStringSubmatch(version); m != nil {
		dir = m[1]
	}
	return false, filepath.Join(dir, "ngx_stream_module.so")
}
