package main

import (
	"context"
	"os"

	"nodenet/api"
	"nodenet/cni"
	"nodenet/config"
	"nodenet/node"
)

// engine is what the commands call beside the control socket. It is a value,
// so that tests put their own functions in its place.
type engine struct {
	Run           func(ctx context.Context, o node.Options) error
	Init          func(o node.InitOptions) (*node.InitResult, error)
	Join          func(ctx context.Context, o node.JoinOptions) (*node.JoinResult, error)
	Check         func(o node.CheckOptions) (*config.Config, []string, error)
	Cleanup       func(ctx context.Context, o node.CleanupOptions) ([]string, error)
	DoctorOffline func(ctx context.Context) []api.Check
	Restore       func(o node.RestoreOptions) (*node.RestoreResult, error)
	HostDNS       func(o node.HostDNSOptions) (*node.HostDNSPlan, error)
	InstallCNI    func(o cni.InstallOptions) ([]string, error)
}

// newEngine connects the commands to the daemon's package.
func newEngine() engine {
	return engine{
		Run:           node.Run,
		Init:          node.Init,
		Join:          node.Join,
		Check:         node.Check,
		Cleanup:       node.Cleanup,
		DoctorOffline: node.DoctorOffline,
		Restore:       node.Restore,
		HostDNS:       node.PlanHostDNS,
		InstallCNI:    cni.Install,
	}
}

// runCNI answers as a CNI plugin when the program was called as one.
func runCNI(args []string) (code int, ok bool) {
	if len(args) == 0 || !cni.IsInvocation(args[0], os.Getenv) {
		return 0, false
	}
	daemon := func(socket string) cni.Daemon { return api.NewClient(socket) }
	return cni.Main(os.Getenv, os.Stdin, os.Stdout, os.Stderr, daemon, versionString()), true
}
