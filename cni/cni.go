// Package cni is a CNI plugin (specification 1.1.0) that does nothing by
// itself: it reads the runtime's request, checks it, asks the daemon, and
// prints the result in the version the runtime speaks.
//
//	runtime ─► env + JSON on stdin ─► request ─► daemon (attach, detach, check, allocate)
//	        ◄─ JSON on stdout      ◄─ result  ◄─ attachment
//
// One binary answers to several names. As "nodenet" it attaches to a network
// of the cluster; as "bridge" and "host-local" it understands the reference
// plugins' configuration, so that existing files keep working.
package cni

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nodenet/api"
)

// Daemon is what the plugin needs of the node's control API.
// *api.Client implements it.
type Daemon interface {
	Attach(ctx context.Context, r api.AttachRequest) (api.Attachment, error)
	Detach(ctx context.Context, r api.DetachRequest) error
	Check(ctx context.Context, r api.DetachRequest) (api.Attachment, error)
	Allocate(ctx context.Context, r api.AttachRequest) (api.Attachment, error)
}

// DefaultSocket is the daemon's control socket where the configuration names none.
const DefaultSocket = "/run/nodenet/nodectl.sock"

// Names under which the binary acts as a CNI plugin without being asked to
// by the environment.
const (
	nameNodenet   = "nodenet"
	nameBridge    = "bridge"
	nameHostLocal = "host-local"
)

// timeout bounds one call of the daemon. Runtimes give a plugin minutes; an
// answer that takes longer than this will not come.
const timeout = 90 * time.Second

// IsInvocation reports whether the process was started as a CNI plugin: a
// runtime sets CNI_COMMAND, and some run a plugin by its name alone to see
// what it is.
func IsInvocation(argv0 string, env func(string) string) bool {
	if env("CNI_COMMAND") != "" {
		return true
	}
	switch filepath.Base(argv0) {
	case nameNodenet, nameBridge, nameHostLocal:
		return true
	}
	return false
}

// Main runs the plugin once and returns the process's exit code. It reads the
// network configuration from stdin, and the verb and its parameters from env,
// as the CNI specification says; results and errors are JSON on stdout, notes
// for the runtime's log go to stderr.
// Without CNI_COMMAND it prints what it is and succeeds, without reading
// stdin: Nomad runs every plugin in this way.
//
// The name that the process was started by matters: a main plugin runs
// "host-local" with its own whole configuration.
func Main(env func(string) string, stdin io.Reader, stdout, stderr io.Writer, daemon func(socket string) Daemon, version string) (exit int) {
	var name string
	if len(os.Args) > 0 {
		name = os.Args[0]
	}
	return Run(name, env, stdin, stdout, stderr, daemon, version)
}

// Run is Main for a process that was started as argv0.
func Run(argv0 string, env func(string) string, stdin io.Reader, stdout, stderr io.Writer, daemon func(socket string) Daemon, version string) (exit int) {
	if env("CNI_COMMAND") == "" {
		fmt.Fprintf(stdout, "CNI %s plugin v%s\nCNI protocol versions supported: %s\n",
			nameNodenet, strings.TrimPrefix(version, "v"), strings.Join(versions, ", "))
		return 0
	}
	p := plugin{env: env, ipamOnly: filepath.Base(argv0) == nameHostLocal, daemon: daemon, log: stderr}
	out, err := p.run(stdin)
	if err != nil {
		if werr := writeJSON(stdout, p.report(err)); werr != nil {
			fmt.Fprintln(stderr, werr)
		}
		return 1
	}
	if out == nil {
		return 0
	}
	if err := writeJSON(stdout, out); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}
