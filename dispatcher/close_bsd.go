//go:build darwin || freebsd

package dispatcher

import "errors"

// There is no such filter here: what is in the listener's queue when it closes
// is accepted first, what arrives in between is reset.

func handshakes(uint16) (int, error) { return 0, errors.ErrUnsupported }
