// Package systemd tests the shipped units under a real systemd, which boots in namespaces
// of its own. make systemd runs it: it takes root, and a Debian made by debootstrap.
package systemd
