package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"nodenet/api"
	"nodenet/dns"
	"nodenet/ipam"
	"nodenet/overlay"
	"nodenet/state"
)

// Attachment modes.
const (
	modeBridge = "bridge" // veth on the network's bridge, with an address
	modeDHCP   = "dhcp"   // veth on the bridge; the workload asks DHCP for its address
	modeHost   = "host"   // the node's own stack: a name, no link
	modeNone   = "none"   // loopback only
	modeIPAM   = "ipam"   // an address, no link (a CNI IPAM plugin's call)
)

const sourceCNI = "cni"

// inflight keeps two verbs from working on one endpoint at a time. The zero
// value is ready.
type inflight struct {
	mu sync.Mutex
	m  map[string]bool
}

func (f *inflight) begin(id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m[id] {
		return &api.Error{Message: fmt.Sprintf("endpoint %s is being attached or detached: try again", id), Code: api.CodeNotReady}
	}
	if f.m == nil {
		f.m = map[string]bool{}
	}
	f.m[id] = true
	return nil
}

func (f *inflight) end(id string) {
	f.mu.Lock()
	delete(f.m, id)
	f.mu.Unlock()
}

func (f *inflight) has(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.m[id]
}

func invalid(format string, a ...any) error {
	return &api.Error{Message: fmt.Sprintf(format, a...), Code: api.CodeInvalid}
}

func (n *Node) endpointID(id string) state.ID {
	return state.ID{Class: state.Owner, Kind: state.KindEndpoint, Owner: n.self, Key: id}
}

// attach gives a network namespace an address, a link and a name. It returns
// when they can be used: the record is durable and this node's bridge, load
// balancer and DNS hold it. On failure nothing is left behind.
func (n *Node) attach(ctx context.Context, r api.AttachRequest) (*api.Attachment, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	r.Namespace = cmp.Or(r.Namespace, "default")
	r.Mode = cmp.Or(r.Mode, modeBridge)
	r.Kind = cmp.Or(r.Kind, state.EndpointAttach)
	r.IfName = cmp.Or(r.IfName, "eth0")
	if r.ID == "" {
		r.ID = randomID()
		if r.Name != "" {
			r.ID = r.Namespace + "." + r.Name
		}
	}
	if err := checkAttach(&r); err != nil {
		return nil, err
	}
	if err := n.checkLabels(r.Namespace, r.Labels); err != nil {
		return nil, err
	}
	if err := n.checkAllFree(r.Publish); err != nil {
		return nil, err
	}
	if err := n.attaching.begin(r.ID); err != nil {
		return nil, err
	}
	defer n.attaching.end(r.ID)

	ep, grant, err := n.reserve(ctx, r)
	if err != nil {
		return nil, err
	}
	spec := n.attachSpec(ep)
	var res overlay.AttachResult
	if r.Mode == modeBridge || r.Mode == modeDHCP || r.Mode == modeNone {
		if res, err = n.overlay.Attach(ctx, spec); err != nil {
			n.release(context.WithoutCancel(ctx), ep)
			return nil, fmt.Errorf("attach %s: %w", r.ID, err)
		}
	}
	ep.MAC, ep.HostIf = res.MAC, res.HostIf
	ep.Ready = r.Mode != modeDHCP
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		ops := []state.Op{state.Put(state.Owner, state.KindEndpoint, ep.ID, ep)}
		for _, p := range r.Publish {
			pub, err := publishRecord(p)
			if err != nil {
				return nil, err
			}
			if pub.Target, err = aimAt(&ep, pub.HostAddr); err != nil {
				return nil, err
			}
			pub.Endpoint, pub.Source = ep.ID, r.Kind
			if err := n.checkPublish(sn, pub); err != nil {
				return nil, err
			}
			ops = append(ops, state.Put(state.Owner, state.KindPublish, pub.Key(), pub))
		}
		return ops, nil
	})
	if err != nil {
		bg := context.WithoutCancel(ctx)
		err = errors.Join(err, n.overlay.Detach(bg, overlay.DetachSpec{HostIf: res.HostIf, ID: ep.ID}))
		n.release(bg, ep)
		return nil, err
	}
	n.settle(ctx, rev)
	n.log.Info("attached", "endpoint", ep.ID, "network", ep.Network, "addr", grant.Addr, "mode", r.Mode)
	a := n.attachment(ep)
	a.HostMAC, a.BridgeMAC, a.MTU = res.HostMAC, res.BridgeMAC, res.MTU
	return a, nil
}

func (n *Node) waitDeclared(ctx context.Context) error {
	select {
	case <-n.declared:
		return nil
	case <-time.After(10 * time.Second):
		return &api.Error{Message: "the node is starting and not yet in sync with its cluster: see `nodectl status`", Code: api.CodeNotReady}
	case <-ctx.Done():
		return ctx.Err()
	}
}

func checkAttach(r *api.AttachRequest) error {
	switch r.Mode {
	case modeBridge, modeDHCP, modeHost, modeNone, modeIPAM:
	default:
		return invalid("mode %q: want bridge, dhcp, host or none", r.Mode)
	}
	if r.Netns == "" && (r.Mode == modeBridge || r.Mode == modeDHCP || r.Mode == modeNone) {
		return invalid("attach %s: no network namespace given", r.ID)
	}
	if (r.Mode == modeBridge || r.Mode == modeDHCP || r.Mode == modeIPAM) && r.Network == "" {
		return invalid("attach %s: no network given", r.ID)
	}
	if len(r.Network) > 128 || strings.ContainsAny(r.Network, "/\x00\n") {
		return invalid("network name %q: want at most 128 characters without '/'", r.Network)
	}
	if !isLabel(r.Namespace) {
		return invalid("namespace %q: want a DNS label (a-z, 0-9 and -, at most 63 characters)", r.Namespace)
	}
	for _, name := range append([]string{r.Name}, r.Aliases...) {
		if name != "" && !isLabel(name) {
			return invalid("name %q: want a DNS label (a-z, 0-9 and -, at most 63 characters)", name)
		}
	}
	if _, err := labelService(r.Namespace, r.Labels); err != nil {
		return invalid("attach %s: %v", r.ID, err)
	}
	if len(r.ID) > 256 || strings.ContainsAny(r.ID, "\x00\n") {
		return invalid("endpoint ID of %d bytes: want at most 256 printable ones", len(r.ID))
	}
	var pubs []state.Publish
	for _, p := range r.Publish {
		pub, err := publishRecord(p)
		if err != nil {
			return err
		}
		if r.Mode == modeDHCP || r.Mode == modeNone {
			return invalid("publish %s: an attachment of mode %s has no address of its own to publish", pub.Key(), r.Mode)
		}
		if slices.ContainsFunc(pubs, pub.Overlaps) {
			return invalid("publish %s: given twice", pub.Key())
		}
		pubs = append(pubs, pub)
	}
	if r.MAC != "" {
		m, err := net.ParseMAC(r.MAC)
		if err != nil || len(m) != 6 || m[0]&1 != 0 {
			return invalid("MAC %q: want a unicast address like 02:00:00:00:00:01", r.MAC)
		}
		r.MAC = m.String() // as the kernel writes it, for comparisons
	}
	if r.Netns != "" && r.Mode != modeIPAM && r.Mode != modeHost {
		if _, err := os.Stat(r.Netns); err != nil {
			return invalid("network namespace %s: %v", r.Netns, errors.Unwrap(err))
		}
	}
	return nil
}

// isLabel reports a label of RFC 1123 §2.1 in lower case.
func isLabel(s string) bool {
	if s == "" || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range []byte(s) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// reserve records the endpoint, not ready yet, with its address.
func (n *Node) reserve(ctx context.Context, r api.AttachRequest) (state.Endpoint, ipam.Grant, error) {
	ep := state.Endpoint{
		ID: r.ID, Network: r.Network, Namespace: r.Namespace, Name: r.Name, Aliases: r.Aliases, Labels: r.Labels,
		Kind: r.Kind, Mode: r.Mode, Netns: r.Netns, IfName: r.IfName, MAC: r.MAC, Created: time.Now().Unix(),
		Hostname: r.Name, NoDefaultRoute: r.NoDefaultRoute,
	}
	for _, p := range r.Ports {
		ep.Ports = append(ep.Ports, state.Port{Name: p.Name, Protocol: cmp.Or(p.Protocol, "tcp"), Port: p.Port})
	}
	if r.Mode == modeBridge || r.Mode == modeDHCP {
		ep.HostIf = overlay.HostIfName(r.ID)
	}
	if r.Define != nil {
		if err := n.define(ctx, r.Network, r.Define); err != nil {
			return ep, ipam.Grant{}, err
		}
	} else if r.IP6.IsValid() && r.Mode != modeBridge {
		return ep, ipam.Grant{}, invalid("address %s: an attachment of mode %s has no IPv6 address of its own", r.IP6, r.Mode)
	}
	var grant ipam.Grant
	_, err := n.writeWithSpace(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if _, ok := state.Lookup[state.Endpoint](sn, n.endpointID(r.ID)); ok {
			return nil, &api.Error{Message: fmt.Sprintf("endpoint %s is attached already: detach it first", r.ID), Code: api.CodeExists}
		}
		// A runtime may give two containers one host name; a person means one.
		if r.Name != "" && r.Kind != state.EndpointCNI {
			for rec, e := range state.All[state.Endpoint](sn) {
				if e.Name == r.Name && e.Namespace == r.Namespace && rec.ID.Owner == n.self && e.Network == r.Network {
					return nil, &api.Error{Message: fmt.Sprintf("name %s.%s is taken by endpoint %s", r.Name, r.Namespace, e.ID), Code: api.CodeExists}
				}
			}
		}
		var ops []state.Op
		switch r.Mode {
		case modeBridge, modeIPAM:
			nw, ok := n.network(sn, r.Network)
			if !ok {
				return nil, n.unknownNetwork(sn, r.Network)
			}
			want, err := wanted(nw, &r)
			if err != nil {
				return nil, err
			}
			grant, ops, err = n.alloc.Allocate(sn, n.self, ipam.Request{
				Network: *nw, RingID: n.ringID(), ID: r.ID, Namespace: r.Namespace, Name: r.Name, MAC: r.MAC,
				Want: want, Now: n.clock.now(),
				Held: func(a netip.Addr) bool { return n.book.Held(r.Network, a) },
			})
			if err != nil {
				return nil, err
			}
			// A lease that ran out stays for a while: its name must not follow
			// the address to somebody else.
			ops = append(ops, state.Del(state.Lease, state.KindLease, r.Network+"/"+grant.Addr.String()))
			ep.Addrs, ep.Gateway, ep.PrefixLen = []netip.Addr{grant.Addr}, grant.Gateway, grant.Prefix.Bits()
			if a := nw.Twin(grant.Addr); a.IsValid() && r.Mode == modeBridge {
				ep.Addrs = append(ep.Addrs, a)
			}
			if nw.NoGateway {
				ep.Gateway = netip.Addr{}
			}
			if r.Mode == modeIPAM {
				// The caller makes the link, and takes its gateway from here.
				with := *nw
				with.NoGateway = false
				ep.Gateway = ipam.Gateway(with, grant.Prefix)
			}
		case modeDHCP:
			nw, ok := n.network(sn, r.Network)
			if !ok {
				return nil, n.unknownNetwork(sn, r.Network)
			}
			if !nw.DHCP {
				return nil, invalid("network %s has no DHCP: add `dhcp` to its block in the Nodefile", r.Network)
			}
		case modeHost:
			l := n.localNow()
			grant.Addr = l.Advertise
			ep.Addrs = []netip.Addr{l.Advertise}
		}
		for _, p := range r.Publish {
			if _, err := aimAt(&ep, p.HostAddr); err != nil {
				return nil, err
			}
		}
		return append(ops, state.Put(state.Owner, state.KindEndpoint, ep.ID, ep)), nil
	})
	return ep, grant, err
}

func (n *Node) unknownNetwork(sn *state.Snapshot, name string) error {
	var names []string
	for _, nw := range sn.View().Networks {
		names = append(names, nw.Name)
	}
	return &api.Error{Message: fmt.Sprintf("network %q is not declared on this node; it has: %s", name, strings.Join(names, ", ")), Code: api.CodeNotFound}
}

func (n *Node) attachSpec(ep state.Endpoint) overlay.AttachSpec {
	s := overlay.AttachSpec{
		ID: ep.ID, Network: ep.Network, NetnsPath: ep.Netns, IfName: ep.IfName, Gateway: ep.Gateway,
		MAC: ep.MAC, HostIf: ep.HostIf, Mode: overlay.ModeBridge, DefaultRoute: !ep.NoDefaultRoute,
	}
	if ep.Mode == modeNone {
		s.Mode = overlay.ModeNone
	}
	if len(ep.Addrs) > 0 {
		s.Addr = netip.PrefixFrom(ep.Addrs[0], ep.PrefixLen)
	}
	if nw, ok := n.network(n.store.Snapshot(), ep.Network); ok {
		s.Bridge = overlay.BridgeName(*nw)
		s.Addr6, s.Gateway6 = twinOf(nw, &ep)
	}
	return s
}

// release takes an endpoint's record, address and published ports back.
func (n *Node) release(ctx context.Context, ep state.Endpoint) (uint64, error) {
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		ops := n.alloc.Release(sn, n.self, ep.ID, n.clock.now())
		for rec, p := range state.All[state.Publish](sn) {
			if rec.ID.Owner == n.self && p.Endpoint == ep.ID {
				ops = append(ops, state.Del(state.Owner, state.KindPublish, rec.ID.Key))
			}
		}
		for rec := range state.All[state.Health](sn) {
			if rec.ID.Owner == n.self && strings.HasSuffix(rec.ID.Key, "/"+ep.ID) {
				ops = append(ops, state.Del(state.Owner, state.KindHealth, rec.ID.Key))
			}
		}
		return ops, nil
	})
	if err != nil {
		n.log.Error("endpoint not released", "endpoint", ep.ID, "err", err)
	}
	return rev, err
}

// find looks an own endpoint up by ID or by name.
func (n *Node) find(r api.DetachRequest) (state.Endpoint, bool) {
	sn := n.store.Snapshot()
	if r.ID != "" {
		e, ok := state.Lookup[state.Endpoint](sn, n.endpointID(r.ID))
		if !ok {
			return state.Endpoint{ID: r.ID}, false
		}
		return *e, true
	}
	if r.Name == "" {
		return state.Endpoint{}, false // an endpoint without a name is found by its ID only
	}
	ns := cmp.Or(r.Namespace, "default")
	for rec, e := range state.All[state.Endpoint](sn) {
		if rec.ID.Owner == n.self && e.Name == r.Name && e.Namespace == ns && (r.Network == "" || e.Network == r.Network) {
			return *e, true
		}
	}
	return state.Endpoint{}, false
}

// detach undoes attach. What is not there is no error: CNI calls DEL twice,
// after reboots and with namespaces long gone.
func (n *Node) detach(ctx context.Context, r api.DetachRequest) error {
	if r.ID == "" && r.Name == "" {
		return invalid("detach: neither ID nor name given")
	}
	if err := n.waitDeclared(ctx); err != nil {
		return err
	}
	found, _ := n.find(r)
	if found.ID == "" {
		return nil
	}
	// Looked at again with the ID held: an attach of it may have been under way.
	if err := n.attaching.begin(found.ID); err != nil {
		return err
	}
	defer n.attaching.end(found.ID)
	ep, ok := n.find(api.DetachRequest{ID: found.ID})
	if !ok {
		// An earlier call may have got no further than the record.
		err := n.overlay.Detach(ctx, overlay.DetachSpec{ID: found.ID})
		if err != nil && !errors.Is(err, overlay.ErrForeign) {
			return fmt.Errorf("detach %s: %w", found.ID, err)
		}
		return nil
	}
	// Out of the answers first, then the link.
	rev, err := n.release(ctx, ep)
	if err != nil {
		return err
	}
	n.settle(ctx, rev)
	if ep.HostIf != "" {
		if err := n.overlay.Detach(ctx, overlay.DetachSpec{HostIf: ep.HostIf, ID: ep.ID}); err != nil {
			return fmt.Errorf("detach %s: %w", ep.ID, err)
		}
	}
	n.log.Info("detached", "endpoint", ep.ID)
	return nil
}

// check compares an attachment with the kernel (CNI's CHECK).
func (n *Node) check(ctx context.Context, r api.DetachRequest) (*api.Attachment, error) {
	ep, ok := n.find(r)
	if !ok {
		return nil, &api.Error{Message: fmt.Sprintf("no endpoint %s on this node", cmp.Or(r.ID, r.Name)), Code: api.CodeNotFound}
	}
	if ep.HostIf != "" {
		if err := n.overlay.CheckAttached(ctx, n.attachSpec(ep)); err != nil {
			return nil, &api.Error{Message: err.Error(), Code: api.CodeDiffers}
		}
	}
	return n.attachment(ep), nil
}

func (n *Node) attachment(ep state.Endpoint) *api.Attachment {
	a := &api.Attachment{
		ID: ep.ID, Network: ep.Network, Gateway: ep.Gateway, MAC: ep.MAC, IfName: ep.IfName, HostIf: ep.HostIf,
	}
	if len(ep.Addrs) > 0 {
		bits := ep.PrefixLen
		if bits == 0 {
			bits = ep.Addrs[0].BitLen()
		}
		a.Addr = netip.PrefixFrom(ep.Addrs[0], bits)
	}
	if nw, ok := n.network(n.store.Snapshot(), ep.Network); ok {
		a.Bridge = overlay.BridgeName(*nw)
		a.Addr6, a.Gateway6 = twinOf(nw, &ep)
	}
	a.MTU = n.overlay.MTU(ep.Network)
	servers, search, options := dns.WorkloadConfig(n.zone(), ep.Namespace, n.cfg.Services.DNS, nil)
	a.DNS = api.DNSConfig{Nameservers: servers, Search: search, Options: options}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	fmt.Fprintf(&b, "search %s\noptions %s\n", strings.Join(search, " "), strings.Join(options, " "))
	a.ResolvConf = b.String()
	return a
}
