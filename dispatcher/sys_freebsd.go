package dispatcher

import "golang.org/x/sys/unix"

// reusePort is the option that balances; FreeBSD's SO_REUSEPORT does not.
const reusePort = unix.SO_REUSEPORT_LB
