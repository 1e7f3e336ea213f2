// Package rules holds no code, only tests of the tree itself: which room may
// import which, and what the programs may link. Each rule stands beside the
// reason for it. The linter knows most of them too and says so sooner, but it
// reads only the files built for the system it runs on; these tests read all.
package rules
