package lb

import (
	"fmt"
	"net/netip"
	"os"
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

// TracksSCTP reports whether the kernel's connection tracking knows SCTP. One
// that does not cannot translate its ports, and which it knows shows in what
// can be configured; nothing is there to read before tracking is used at all,
// and then it is assumed.
func TracksSCTP() bool {
	const dir = "/proc/sys/net/netfilter/"
	if _, err := os.Stat(dir + "nf_conntrack_max"); err != nil {
		return true
	}
	_, err := os.Stat(dir + "nf_conntrack_sctp_timeout_established")
	return err == nil
}

func probe() error {
	k, err := openKernel()
	if err != nil {
		return err
	}
	defer k.Close()
	t := Table{
		Range: netip.MustParsePrefix("10.96.0.0/12"), Resolver: netip.MustParseAddr("10.96.0.10"),
		Range6: netip.MustParsePrefix("fd00:10:96::/108"), Resolver6: netip.MustParseAddr("fd00:10:96::a"),
	}
	bridge := Bridge{Name: "nn-probe", Internal: true}
	for _, v := range versions {
		bridge.Prefix, bridge.Prefix6 = netip.MustParsePrefix("10.244.0.0/16"), netip.MustParsePrefix("fd00:10:244::/112")
		prefix, vip := bridge.prefix(v), t.resolver(v).Next()
		pod := netip.AddrPortFrom(prefix.Addr().Next(), 80)
		backends := []netip.AddrPort{pod}
		t.VIPs = append(t.VIPs, vip)
		t.Services = append(t.Services, Service{VIP: vip, Proto: TCP, Port: 80, Backends: backends})
		t.NodePorts = append(t.NodePorts, Service{VIP: anyOf(v), Proto: TCP, Port: 30080, Backends: backends})
		vip = vip.Next()
		t.VIPs = append(t.VIPs, vip)
		for i, rule := range []class{bySource, byMaglev, fromSome, sticky} {
			s := Service{VIP: vip, Proto: TCP, Port: uint16(80 + i), Backends: backends, Rule: rule, Sources: []netip.Prefix{prefix}}
			if rule == sticky {
				s.Affinity = 60
			}
			t.Services = append(t.Services, s)
		}
		t.Services = append(t.Services, Service{VIP: vip, Proto: TCP, Port: 8000, Last: 8080, Backends: backends, Rule: inRange})
		t.NodePorts = append(t.NodePorts, Service{VIP: anyOf(v), Proto: UDP, Port: 30080, Backends: backends, Rule: onSome, HostAddrs: []netip.Prefix{prefix}})
		t.Publishes = append(t.Publishes, Publish{HostAddr: anyOf(v), Proto: TCP, HostPort: 8080, Target: pod})
		t.Masquerade, t.Cluster, t.Local = append(t.Masquerade, prefix), append(t.Cluster, prefix), append(t.Local, prefix)
		t.LocalBackends = append(t.LocalBackends, LocalBackend{Target: Target{pod.Addr(), TCP, 80}, MAC: [6]byte{2}})
	}
	t.Bridges, t.Tunnels = []Bridge{bridge}, []string{"nv-probe"}
	return k.Apply(diffObserved(k, nil, arrange(t, slotsObserved(nil)).Ruleset()))
}
