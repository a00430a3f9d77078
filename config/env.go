package config

import (
	"net/netip"
	"os"
	"path/filepath"
)

// RouteProtocol is the protocol number of the routes that nodenet makes.
const RouteProtocol = 78

// Env is what a Nodefile may see of the machine it is read on. The zero value
// is the running process: its environment, its host name, its files, and no
// knowledge of routes. A caller that wants a reproducible result fills it.
type Env struct {
	// LookupEnv resolves {$NAME} and {%NAME%}. nil: os.LookupEnv.
	LookupEnv func(string) (string, bool)
	// Hostname is the default of the node's name, and of {$HOSTNAME} where the
	// environment lacks it. "": os.Hostname.
	Hostname string
	// Routes are the host's existing IPv4 routes; a range that overlaps one is
	// refused. nil: unknown, no check.
	Routes []HostRoute
	// CheckServers looks into the DNS server blocks, whose directives this
	// package does not know. Its errors join those of the Nodefile. nil: no look.
	CheckServers func([]Server) error
	// FS reads the files that import names. nil: the disk.
	FS FS
}

// HostRoute is a route that the host has. Routes of RouteProtocol, routes on
// nodenet's own links (a network's bridge, any nn* or nv-*) and the default
// route, also written as two /1 halves, never count as an overlap.
type HostRoute struct {
	Prefix   netip.Prefix
	Dev      string
	Protocol int
}

// FS is the part of a file system that import needs. Names are paths as
// filepath.Join makes them, absolute or relative to the working directory.
type FS interface {
	ReadFile(name string) ([]byte, error)
	Glob(pattern string) ([]string, error)
}

type diskFS struct{}

func (diskFS) ReadFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return read(f)
}

func (diskFS) Glob(pattern string) ([]string, error) { return filepath.Glob(pattern) }

// filled returns e with every nil field but Routes replaced by the process's own.
func (e Env) filled() Env {
	if e.LookupEnv == nil {
		e.LookupEnv = os.LookupEnv
	}
	if e.Hostname == "" {
		// Without a host name the node block must name the node; the check says so.
		e.Hostname, _ = os.Hostname()
	}
	if e.FS == nil {
		e.FS = diskFS{}
	}
	return e
}

// lookup is LookupEnv with the host name standing in for a missing HOSTNAME,
// which shells set but service managers do not.
func (e Env) lookup(name string) (string, bool) {
	if v, ok := e.LookupEnv(name); ok {
		return v, true
	}
	if name == "HOSTNAME" && e.Hostname != "" {
		return e.Hostname, true
	}
	return "", false
}
