package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// hostSysctls plans the settings of the host as a whole. They are as few as
// can be:
//   - ip_forward: without it nothing passes between bridge and underlay.
//   - conf/all/send_redirects: a device sends redirects when either its own
//     value or the one of "all" is set, so that 0 on the bridges needs 0 in
//     "all". Other devices keep their own value and their behaviour.
//   - IPv6 forwarding, where a network has IPv6. A host that forwards does not
//     heed router advertisements any more, with accept_ra 1; an underlay device
//     that did until now goes on by 2.
func (d *deriver) hostSysctls() {
	var v4, v6 bool
	for i := range d.v.Networks {
		n := &d.v.Networks[i]
		v4 = v4 || n.Prefix.Addr().Is4()
		v6 = v6 || n.Prefix.Addr().Is6() || n.Prefix6.IsValid()
	}
	if v4 {
		d.p.Sysctls = append(d.p.Sysctls,
			Sysctl{Path: "net/ipv4/ip_forward", Value: "1"},
			Sysctl{Path: "net/ipv4/conf/all/send_redirects", Value: "0"})
	}
	if v6 {
		const forwarding = "net/ipv6/conf/all/forwarding"
		if d.l.UnderlayDev != "" {
			d.p.Sysctls = append(d.p.Sysctls, Sysctl{Path: "net/ipv6/conf/" + d.l.UnderlayDev + "/accept_ra", Value: "2", From: "1", Before: forwarding})
		}
		d.p.Sysctls = append(d.p.Sysctls, Sysctl{Path: forwarding, Value: "1"})
	}
}

// bridgeSysctls plans the settings of a bridge.
//   - send_redirects 0: a reply that the load balancer lifts from one port to
//     another of the same bridge must not make the router tell the workload a
//     shorter way.
//   - rp_filter 2: sources are checked for being routable, not for their
//     device, since a contested block's addresses may be behind another one.
//     The larger of this and "all" counts, so 2 always wins. A bridge without
//     an address is left alone: there, loose means strict (see vxlanSysctls).
//   - arp_announce 2: answers of the resolver carry its address, and the kernel
//     would ask for the client's MAC in the resolver's name, which a
//     workload without a default route does not answer.
//   - disable_ipv6 on a v4 network: the bridge gets no link-local address and
//     joins no groups; frames of IPv6 still pass between its ports.
//   - accept_dad 0 otherwise: while its link-local address is tentative, the
//     workloads do not find the bridge for sure.
func (d *deriver) bridgeSysctls(b Bridge, v4 bool) {
	set := func(path, value string) {
		d.p.Sysctls = append(d.p.Sysctls, Sysctl{Path: path, Value: value, Dev: b.Name})
	}
	set("net/ipv4/conf/"+b.Name+"/send_redirects", "0")
	if len(b.Addrs) > 0 {
		set("net/ipv4/conf/"+b.Name+"/rp_filter", "2")
	}
	set("net/ipv4/conf/"+b.Name+"/arp_announce", "2")
	if v4 {
		set("net/ipv6/conf/"+b.Name+"/disable_ipv6", "1")
	} else {
		set("net/ipv6/conf/"+b.Name+"/disable_ipv6", "0")
		set("net/ipv6/conf/"+b.Name+"/accept_ra", "0")
		set("net/ipv6/conf/"+b.Name+"/accept_dad", "0")
	}
}

// vxlanSysctls plans the settings of a VXLAN device.
//   - rp_filter 0: a node without an own block, and a process bound to the
//     underlay address, send from an address whose way back is the underlay.
//     Loose mode would not do: on a device without an address the kernel
//     (fib_validate_source) takes it for strict. Where "all" is 1, the larger
//     value counts and such packets are lost; those between workloads are not.
//   - addr_gen_mode 1: no link-local address.
func (d *deriver) vxlanSysctls(v VXLAN) {
	d.p.Sysctls = append(d.p.Sysctls,
		Sysctl{Path: "net/ipv4/conf/" + v.Name + "/rp_filter", Value: "0", Dev: v.Name},
		Sysctl{Path: "net/ipv4/conf/" + v.Name + "/send_redirects", Value: "0", Dev: v.Name},
		Sysctl{Path: "net/ipv6/conf/" + v.Name + "/addr_gen_mode", Value: "1", Dev: v.Name})
}

// sysctlLog keeps what the host's sysctls were before the first change, in
// sysctl.json in dir. The file is complete on disk before the change is made.
type sysctlLog struct{ dir string }

// sysctlChange is an entry of sysctl.json.
type sysctlChange struct {
	Before string `json:"before"`
	Set    string `json:"set"`
}

func (s sysctlLog) file() string { return filepath.Join(s.dir, "sysctl.json") }

// load returns the recorded changes by path; none when there is no file.
func (s sysctlLog) load() (map[string]sysctlChange, error) {
	changes := map[string]sysctlChange{}
	if s.dir == "" {
		return changes, nil
	}
	b, err := os.ReadFile(s.file())
	if errors.Is(err, fs.ErrNotExist) {
		return changes, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read former sysctls: %w", err)
	}
	if err := json.Unmarshal(b, &changes); err != nil {
		return nil, fmt.Errorf("read former sysctls from %s: %w; remove the file if their restoring at cleanup does not matter", s.file(), err)
	}
	return changes, nil
}

// record saves the present value of each host sysctl that the plan is about
// to change for the first time.
func (s sysctlLog) record(p *Plan, obs *Observed) error {
	if s.dir == "" {
		return nil
	}
	var changes map[string]sysctlChange
	dirty := false
	for _, c := range p.Sysctls {
		if c.Dev != "" || !c.applies(obs.Sysctls) {
			continue
		}
		now := obs.Sysctls[c.Path]
		if changes == nil {
			var err error
			if changes, err = s.load(); err != nil {
				return err
			}
		}
		if _, done := changes[c.Path]; !done {
			changes[c.Path], dirty = sysctlChange{Before: now, Set: c.Value}, true
		}
	}
	if !dirty {
		return nil
	}
	b, err := json.MarshalIndent(changes, "", "  ")
	if err != nil {
		return fmt.Errorf("record former sysctls: %w", err)
	}
	if err := writeFileSync(s.file(), append(b, '\n')); err != nil {
		return fmt.Errorf("record former sysctls: %w", err)
	}
	return nil
}

// writeFileSync replaces a file so that after a crash it is either the old or
// the new one, whole.
func writeFileSync(path string, b []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
