package lb

import (
	"fmt"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"
)

// ProbeKernel programs a ruleset with every kind of rule that this package
// uses, in a network namespace that nobody else sees and that is gone
// afterwards. The error says what the kernel refuses; Fix goes with it.
func ProbeKernel() (fix string, err error) {
	res := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends in its own namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			res <- fmt.Errorf("make a network namespace: %w", err)
			return
		}
		res <- probe()
	}()
	if err := <-res; err != nil {
		return fixFor(err), err
	}
	return "", nil
}

func probe() error {
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.Close()
	prefix := netip.MustParsePrefix("10.244.0.0/16")
	pod := netip.MustParseAddrPort("10.244.0.2:80")
	vip := netip.MustParseAddr("10.96.0.11")
	backends := []netip.AddrPort{pod}
	t := Table{
		Range: netip.MustParsePrefix("10.96.0.0/12"), Resolver: netip.MustParseAddr("10.96.0.10"),
		VIPs: []netip.Addr{vip}, Services: []Service{{VIP: vip, Proto: TCP, Port: 80, Backends: backends}},
		NodePorts:  []Service{{Proto: TCP, Port: 30080, Backends: backends}},
		Publishes:  []Publish{{Proto: TCP, HostPort: 8080, Target: pod}},
		Masquerade: []netip.Prefix{prefix}, Cluster: []netip.Prefix{prefix}, Local: []netip.Prefix{prefix},
		LocalBackends: []LocalBackend{{Target: Target{pod.Addr(), TCP, 80}, MAC: [6]byte{2}}},
		Bridges:       []Bridge{{Name: "nn-probe", Prefix: prefix, Internal: true}},
	}
	return k.Apply(diffObserved(k, nil, arrange(t, slotsObserved(nil)).Ruleset()))
}
