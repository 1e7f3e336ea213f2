//go:build unix

package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// ErrNoMaster is returned (wrapped) when nobody answers at a path.
var ErrNoMaster = errors.New("no rrd is there")

// A Client talks to one master. It is for one goroutine.
type Client struct {
	c  net.Conn
	in *bufio.Reader
	id uint64
}

// Dial connects to the control socket at path. The caller closes the Client.
func Dial(ctx context.Context, path string) (*Client, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		return nil, fmt.Errorf("connect to %s: %w", path, ErrNoMaster)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("connect to %s: uid %d may not: be root, the user of rrd, or one of --control-uid", path, os.Geteuid())
	case err != nil:
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return &Client{c: c, in: bufio.NewReaderSize(c, 64<<10)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.c.Close() }

// Call sends one request and waits for its result; args may be nil. Each event
// before it is given to onEvent, if that is not nil. What the master refuses is
// an *Error. After any other error, the end of ctx included, the Client is of no
// more use.
func (c *Client) Call(ctx context.Context, cmd string, args any, onEvent func(json.RawMessage)) (json.RawMessage, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	result, err := c.call(cmd, args, onEvent)
	if err != nil && ctx.Err() != nil {
		err = ctx.Err()
	}
	return result, err
}

func (c *Client) call(cmd string, args any, onEvent func(json.RawMessage)) (json.RawMessage, error) {
	c.id++
	r := Request{V: Version, ID: c.id, Cmd: cmd}
	if args != nil {
		raw, err := json.Marshal(args)
		if err != nil {
			return nil, fmt.Errorf("write args of %s: %w", cmd, err)
		}
		r.Args = raw
	}
	line, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", cmd, err)
	}
	// Who is turned away finds the reason although writing fails.
	_, werr := c.c.Write(append(line, '\n'))
	for {
		a, err := c.read()
		switch {
		case err != nil && werr != nil:
			return nil, fmt.Errorf("send %s: %w", cmd, werr)
		case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
			return nil, fmt.Errorf("%s: rrd ended the connection without an answer", cmd)
		case err != nil:
			return nil, fmt.Errorf("read the answer to %s: %w", cmd, err)
		case a.OK == nil && a.Event != nil && a.ID == c.id:
			if onEvent != nil {
				onEvent(a.Event)
			}
		case a.OK == nil || a.ID != c.id && (a.ID != 0 || *a.OK):
			return nil, fmt.Errorf("%s: rrd answers what was not asked", cmd)
		case !*a.OK:
			return nil, &Error{a.Code, a.Error}
		default:
			return a.Result, nil
		}
	}
}

// WaitClosed waits until the master has ended the connection, as it does last
// when it stops.
func (c *Client) WaitClosed(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = c.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	_, _ = io.Copy(io.Discard, c.in) // any end will do
}

func (c *Client) read() (a reply, err error) {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		line = append(line, part...)
		if errors.Is(err, bufio.ErrBufferFull) {
			if len(line) > MaxReply {
				return a, fmt.Errorf("a line has more than %d bytes", MaxReply)
			}
			continue
		}
		if err != nil {
			return a, err
		}
		return a, json.Unmarshal(line, &a)
	}
}

// Find returns the sockets in the Directories that somebody serves, in their
// order. skipped says what was there and could not be asked.
func Find(ctx context.Context, getenv func(string) string) (live []string, skipped []error) {
	for _, dir := range Directories(getenv) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				skipped = append(skipped, err)
			}
			continue
		}
		// Root asks the masters of all users: a service with a user of its own has such a
		// directory from systemd.
		resolved, err := filepath.EvalSymlinks(dir)
		if err == nil {
			err = checkDirectory(resolved, os.Geteuid() == 0)
		}
		if err != nil {
			skipped = append(skipped, err)
			continue
		}
		for _, e := range entries {
			name := e.Name()
			path := filepath.Join(dir, name)
			if e.Type() != os.ModeSocket || name != SocketName && !(strings.HasPrefix(name, "control-") && strings.HasSuffix(name, ".sock")) || slices.Contains(live, path) {
				continue
			}
			c, err := Dial(ctx, path)
			switch {
			case errors.Is(err, ErrNoMaster): // stale
			case err != nil:
				skipped = append(skipped, err)
			default:
				_ = c.Close()
				live = append(live, path)
			}
		}
	}
	return live, skipped
}
