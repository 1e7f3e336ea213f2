//go:build darwin || freebsd

package dispatcher

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// withRights refuses where the worker is another user: credentials are the whole
// process's here.
func withRights(r *Rights, fn func()) error {
	if r.differ() {
		return fmt.Errorf("unix sockets that a worker of another user asks for need Linux; name it with --listen: %w", unix.EPERM)
	}
	fn()
	return nil
}
