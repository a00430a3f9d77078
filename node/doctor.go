package node

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"nodenet/api"
	"nodenet/gossip"
	"nodenet/lb"
	"nodenet/node/check"
	"nodenet/overlay"
	"nodenet/state"
)

// Capabilities that the daemon works with (capabilities(7)).
var capabilities = []struct {
	bit  uint
	name string
	why  string
}{
	{12, "CAP_NET_ADMIN", "links, routes, nftables"},
	{13, "CAP_NET_RAW", "DHCP"},
	{10, "CAP_NET_BIND_SERVICE", "port 53"},
	{21, "CAP_SYS_ADMIN", "entering network namespaces"},
}

const (
	okay = "ok"
	warn = "warn"
	bad  = "fail"
	skip = "skip"
)

// DoctorOffline makes the checks that need no running daemon.
func DoctorOffline(context.Context) []api.Check {
	return slices.Concat(checkPrivileges(), checkKernel(), checkHost(thisHost{}))
}

// checkKernel tries what the data path needs, where it disturbs nobody.
func checkKernel() []api.Check {
	var can []string
	var out []api.Check
	for _, f := range overlay.ProbeKernel() {
		if f.Err != nil {
			out = append(out, api.Check{Name: "kernel: " + f.Name, Status: bad, Detail: f.Err.Error(), Fix: f.Fix})
			continue
		}
		can = append(can, f.Name)
	}
	if fix, err := lb.ProbeKernel(); err != nil {
		out = append(out, api.Check{Name: "kernel: nftables", Status: bad, Detail: err.Error(), Fix: fix})
	} else {
		can = append(can, "nftables")
	}
	if len(can) > 0 {
		out = append([]api.Check{{Name: "kernel", Status: okay, Detail: strings.Join(can, ", ") + " tried and working"}}, out...)
	}
	return out
}

func checkPrivileges() []api.Check {
	c := api.Check{Name: "privileges", Status: okay, Detail: "all that the daemon needs"}
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return []api.Check{{Name: "privileges", Status: warn, Detail: err.Error()}}
	}
	var eff uint64
	for line := range bytes.Lines(b) {
		if v, ok := bytes.CutPrefix(line, []byte("CapEff:")); ok {
			eff, _ = strconv.ParseUint(strings.TrimSpace(string(v)), 16, 64)
		}
	}
	var missing []string
	for _, p := range capabilities {
		if eff&(1<<p.bit) == 0 {
			missing = append(missing, fmt.Sprintf("%s (%s)", p.name, p.why))
		}
	}
	if len(missing) > 0 {
		c.Status, c.Detail, c.Fix = bad, "missing: "+strings.Join(missing, ", "), "run as root or with packaging/systemd/nodenet.service"
	}
	return []api.Check{c}
}

// doctor makes every check, from the host up to a workload's view.
func (n *Node) doctor(ctx context.Context) ([]api.Check, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	sn := n.store.Snapshot()
	v := sn.View()
	out := DoctorOffline(ctx)
	out = append(out, n.checkDisk())
	out = append(out, checkSite(thisHost{kernelSockets{}}, n.site(sn))...)
	out = append(out, n.checkPorts()...)
	out = append(out, n.checkFirewalls()...)
	out = append(out, n.checkParts(v)...)
	out = append(out, n.checkPeers(v)...)
	out = append(out, n.checkDNS(ctx)...)
	out = append(out, n.checkResolverPath(ctx)...)
	out = append(out, n.checkVIPs(ctx, v)...)
	out = append(out, n.checkAnnounced(v)...)
	for _, c := range n.conflicts(sn, v) {
		out = append(out, api.Check{Name: "conflict", Status: warn, Detail: fmt.Sprintf("%s: %s (%s is used, not %s)", c.What, c.Detail, c.Winner, c.Loser)})
	}
	return out, nil
}

func (n *Node) checkDisk() api.Check {
	var st unix.Statfs_t
	if err := unix.Statfs(n.dir, &st); err != nil {
		return api.Check{Name: "state directory", Status: bad, Detail: err.Error()}
	}
	free := st.Bavail * uint64(st.Bsize) >> 20
	c := api.Check{Name: "state directory", Status: okay, Detail: fmt.Sprintf("%s, %d MiB free", n.dir, free)}
	if free < 64 {
		c.Status, c.Fix = warn, "make room: without it no address can be given out"
	}
	return c
}

func (n *Node) checkParts(v *state.View) []api.Check {
	var out []api.Check
	for _, s := range n.subsystems(v) {
		c := api.Check{Name: s.Name, Status: okay, Detail: s.Detail}
		switch {
		case !s.OK:
			c.Status, c.Detail, c.Fix = bad, s.Error, s.Fix
		case s.Applied < s.Desired:
			c.Status, c.Detail = warn, fmt.Sprintf("revision %d applied, %d wanted", s.Applied, s.Desired)
		}
		out = append(out, c)
	}
	return out
}

func (n *Node) checkPeers(v *state.View) []api.Check {
	var out []api.Check
	for _, p := range n.peers(v) {
		c := api.Check{Name: "peer " + p.Name, Status: okay, Detail: fmt.Sprintf("%s at %s", p.State, p.Address)}
		if p.RTTMicro > 0 {
			c.Detail += fmt.Sprintf(", %.2f ms", float64(p.RTTMicro)/1000)
		}
		if d := time.Duration(p.Skew) * time.Microsecond; d.Abs() > gossip.ShowSkew {
			c.Detail += fmt.Sprintf(", its clock is off by %s", d.Round(100*time.Millisecond))
			if d.Abs() > time.Minute {
				c.Status, c.Fix = warn, "set the clocks of both nodes with NTP: which of two changes is newer is decided by clock"
			}
		}
		if p.Flapping > 0 {
			c.Status = warn
			c.Detail += fmt.Sprintf(", flapping, back in %d s", (p.Flapping+999)/1000)
			c.Fix = "it died and came back again and again: look at its log, its load and its network"
		}
		if p.State != state.Alive.String() {
			c.Status = bad
			c.Fix = fmt.Sprintf("see that the node is up and that tcp and udp %d and tcp %d between the nodes are open", n.cfg.Cluster.GossipPort, n.cfg.Cluster.SyncPort)
			if long, fix := longDead(p.Name, p.State, p.Since, time.Now()); long != "" {
				c.Detail, c.Fix = c.Detail+", "+long, fix
			}
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		out = append(out, api.Check{Name: "peers", Status: skip, Detail: "a cluster of one"})
	}
	return out
}

// deadLong is after how long a dead node is somebody's business: nothing of it
// is given up before it is forgotten.
const deadLong = 24 * time.Hour

// longDead says what to do about a node that this one has not heard of since
// long ago, Unix seconds; "": nothing.
func longDead(name, is string, since int64, now time.Time) (detail, fix string) {
	d := now.Sub(time.Unix(since, 0))
	if is != state.Dead.String() || since == 0 || d < deadLong {
		return "", ""
	}
	return fmt.Sprintf("for %d h: its routes and addresses stay", int(d.Hours())),
		fmt.Sprintf("bring it back; if it is gone for good, `nodectl node forget %s` takes its addresses over", name)
}

// checkDNS asks over the network path that a workload's resolver takes.
func (n *Node) checkDNS(ctx context.Context) []api.Check {
	name := "dns-version." + mdns.Fqdn(n.zone())
	m := new(mdns.Msg)
	m.SetQuestion(name, mdns.TypeTXT)
	c := &mdns.Client{Timeout: 2 * time.Second}
	server := net.JoinHostPort(n.cfg.Services.DNS.String(), "53")
	r, rtt, err := c.ExchangeContext(ctx, m, server)
	switch {
	case err != nil:
		return []api.Check{{Name: "dns answer", Status: bad, Detail: fmt.Sprintf("ask %s for %s: %v", server, name, err),
			Fix: "see the dns and lb lines above; another server may hold port 53 of that address"}}
	case r.Rcode != mdns.RcodeSuccess || len(r.Answer) == 0:
		return []api.Check{{Name: "dns answer", Status: bad, Detail: fmt.Sprintf("%s answers %s for %s", server, mdns.RcodeToString[r.Rcode], name)}}
	}
	return []api.Check{{Name: "dns answer", Status: okay, Detail: fmt.Sprintf("%s answers in %.2f ms", server, float64(rtt.Microseconds())/1000)}}
}

// checkVIPs connects to one TCP port of each service that should answer.
func (n *Node) checkVIPs(ctx context.Context, v *state.View) []api.Check {
	var out []api.Check
	seen := 0
	for s := range v.Services() {
		seen++
		vip := s.VIP
		if !vip.IsValid() {
			vip = s.VIP6
		}
		if !vip.IsValid() || s.Ready() == 0 {
			continue
		}
		for _, p := range s.Ports {
			if p.Protocol != "tcp" {
				continue
			}
			a := netip.AddrPortFrom(vip, p.Port)
			c := api.Check{Name: fmt.Sprintf("service %s.%s", s.Name, s.Namespace), Status: okay, Detail: a.String() + " connects"}
			limited, cancel := context.WithTimeout(ctx, check.DefaultTimeout)
			err := check.Probe{Type: state.CheckTCP, Addr: a}.Run(limited)
			cancel()
			if err != nil {
				c.Status, c.Detail = bad, err.Error()
				c.Fix = "see `nodectl service show`: does the workload listen on that port?"
			}
			out = append(out, c)
			break
		}
		if len(out) == 50 {
			return append(out, api.Check{Name: "services", Status: skip, Detail: fmt.Sprintf("%d more not tried", v.NumServices()-seen)})
		}
	}
	return out
}
