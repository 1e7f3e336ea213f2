package handoff

// What a worker finds in its environment. Both sides of the agreement are here;
// what else a worker must know comes over the channel.
const (
	// EnvChannelFD holds the number of the worker's end of the channel. The
	// worker library unsets it, so that a worker's own children are not taken
	// for workers.
	EnvChannelFD = "RRD_CHANNEL_FD"
	// EnvSlot holds the worker's slot, from 0.
	EnvSlot = "RRD_SLOT"
	// EnvGeneration holds the generation, from 1.
	EnvGeneration = "RRD_GENERATION"
	// EnvProtocol holds the newest protocol version that the master speaks.
	EnvProtocol = "RRD_PROTOCOL"
)

// ProtocolVersion is the newest version of the native protocol, which this package
// speaks. Flags, and not the version, allow the frames beyond OldestVersion.
const ProtocolVersion = 2

// OldestVersion is the oldest supported version of a master or a worker.
const OldestVersion = 1

// FirstInheritedFD is the first descriptor after stdin, stdout and stderr: the
// listeners of LISTEN_FDS start here (sd_listen_fds(3)), the channel follows
// them.
const FirstInheritedFD = 3
