// Package load is the client that judges whether rrd lost a connection.
//
// It opens many connections, each with one request that bears an id of its own,
// reads each to its end and keeps a ledger of what became of every one: answered,
// or failed in which way. Tools for measuring rates count errors at best; none
// tells that an answer was another client's, or came twice.
//
// In a closed loop (Clients) each of N clients opens its next connection when the
// last one is done, so a slow server is asked less often. In an open loop (Rate)
// connection number i starts at i/Rate seconds, whatever the others do, and its
// latency counts from that moment: a server that stops for a second is charged
// for all who came in that second.
//
// Connections are plain net ones with a hand-written request and a parser of
// answers that allocates next to nothing: net/http's client costs more than the
// server does. A client asks for "Connection: close" and reads to the end of the
// stream, so that the server's side holds the port in TIME_WAIT and a second
// answer is seen.
package load
