//go:build unix

// Package control is the conversation between rrd and rrdctl: one JSON object a
// line over a unix socket that only root, the user of rrd and those who are named
// may use. docs/control.md describes it for other clients.
//
// Requests of one connection are worked off one after the other. A reply is any
// number of events and then one result:
//
//	{"v":1,"id":7,"cmd":"workers.set","args":{"workers":8}}
//	{"id":7,"event":{"event":"worker.ready","worker":7,...}}
//	{"id":7,"ok":true,"result":{"workers":8,...}}
//
// # What bounds it
//
// A line of a client has at most MaxLine bytes and MaxIdle to arrive, at most
// MaxClients are connected, and a line that is no request ends its connection.
// What a client does not read it loses within WriteTimeout, together with its
// connection. So no client can hold the master's memory or descriptors, and
// none of it happens on the goroutine that dispatches.
//
// # The file
//
// Listen and Listener.Close change the directory only under a lock, and only
// where nobody else may write: the mode is 0600 from the file's first moment, a
// live socket is never unlinked, and of two masters exactly one gets a path.
package control
