package cni

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"nodenet/api"
)

// plugin is one run.
type plugin struct {
	env      func(string) string
	ipamOnly bool // called as host-local
	daemon   func(socket string) Daemon
	log      io.Writer

	version string // asked for, once known
}

// observer is what GC and STATUS need of the daemon beyond Daemon.
type observer interface {
	Status(ctx context.Context) (api.Status, error)
	Endpoints(ctx context.Context) ([]api.Endpoint, error)
}

// run does what the environment says. A nil result is an empty answer.
func (p *plugin) run(stdin io.Reader) (any, error) {
	v, err := readEnv(p.env)
	if v.command == cmdVersion {
		return p.versions(stdin)
	}
	if err != nil {
		// The error is to be in the version asked for, if that can be read.
		if _, ver, _ := readConf(stdin); ver != "" {
			p.version = ver
		}
		return nil, err
	}
	c, ver, err := readConf(stdin)
	p.version = ver
	if err != nil {
		return nil, err
	}
	if v.command == cmdCheck && !atLeast(ver, "0.4.0") || (v.command == cmdGC || v.command == cmdStatus) && !atLeast(ver, "1.1.0") {
		return nil, faultf(codeVersion, "%s does not exist in CNI version %s", v.command, ver)
	}
	socket := cmp.Or(c.Socket, p.env("NODENET_SOCKET"), DefaultSocket)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	d := p.daemon(socket)
	switch v.command {
	case cmdAdd:
		return p.add(ctx, d, &c, &v)
	case cmdDel:
		return nil, p.del(ctx, d, &c, &v)
	case cmdCheck:
		return nil, p.check(ctx, d, &c, &v)
	case cmdGC:
		return nil, p.gc(ctx, d, &c)
	default:
		return nil, p.status(ctx, d, &c)
	}
}

// versions answers VERSION. Its input may be anything: old runtimes send none.
func (p *plugin) versions(stdin io.Reader) (any, error) {
	_, ver, _ := readConf(stdin)
	if ver == "" {
		ver = latest
	}
	return versionResult{CNIVersion: ver, SupportedVersions: versions}, nil
}

func (p *plugin) add(ctx context.Context, d Daemon, c *netConf, v *invocation) (any, error) {
	r, err := buildRequest(c, v, p.ipamOnly)
	if err != nil {
		return nil, err
	}
	if r.Mode == "ipam" {
		at, err := d.Allocate(ctx, r.AttachRequest)
		if err != nil {
			return nil, daemonFault("allocate an address for "+r.ID, err)
		}
		return makeResult(p.version, &r, &at, nil)
	}
	if p.env("CNI_NETNS_OVERRIDE") == "" && sameNetns(v.netns) {
		return nil, faultf(codeSameNetns, "CNI_NETNS=%s is the host's own network namespace", v.netns)
	}
	at, err := d.Attach(ctx, r.AttachRequest)
	if err != nil {
		return nil, daemonFault("attach "+r.ID, err)
	}
	if at.IfName == "" {
		at.IfName = v.ifName
	}
	out, err := makeResult(p.version, &r, &at, c.PrevResult)
	if err != nil {
		// The runtime will not know of the attachment: take it back.
		return nil, errors.Join(err, d.Detach(ctx, detachRequest(r.Network, v)))
	}
	return out, nil
}

func detachRequest(network string, v *invocation) api.DetachRequest {
	return api.DetachRequest{ID: v.attachmentID(), Network: network, IfName: v.ifName, Netns: v.netns}
}

// network returns the name by which the daemon knows the configuration's network.
func (c *netConf) network(ipamOnly bool) string {
	switch {
	case ipamOnly || c.Type != nameNodenet:
		return c.Name
	case c.Network != "":
		return c.Network
	}
	return "pods"
}

// del succeeds also when there is nothing, or nothing any more, to remove. It
// does not look at the rest of the configuration, which may have changed or
// become invalid since ADD.
func (p *plugin) del(ctx context.Context, d Daemon, c *netConf, v *invocation) error {
	err := d.Detach(ctx, detachRequest(c.network(p.ipamOnly), v))
	var ae *api.Error
	if errors.As(err, &ae) && ae.Code == api.CodeNotFound {
		return nil
	}
	return daemonFault("detach "+v.attachmentID(), err)
}

func (p *plugin) check(ctx context.Context, d Daemon, c *netConf, v *invocation) error {
	r, err := buildRequest(c, v, p.ipamOnly)
	if err != nil {
		return err
	}
	at, err := d.Check(ctx, detachRequest(r.Network, v))
	if err != nil {
		f := daemonFault("check "+r.ID, err)
		var ae *api.Error
		if errors.As(err, &ae) && ae.Code == api.CodeNotFound {
			return &fault{code: codeUnknown, msg: "check " + r.ID, details: err.Error()}
		}
		return f
	}
	if isZero(c.PrevResult) {
		return faultf(codeConfig, "CHECK needs a prevResult")
	}
	addrs, err := prevAddrs(c.PrevResult)
	if err != nil {
		return err
	}
	if !slices.Contains(addrs, at.Addr) {
		return faultf(codeDiffers, "check %s: the attachment has %s, prevResult does not", r.ID, at.Addr)
	}
	// A result from before IPv6 was told of lists none; one that does must be
	// right.
	told := slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is6() })
	if at.Addr6.IsValid() && told && !slices.Contains(addrs, at.Addr6) {
		return faultf(codeDiffers, "check %s: the attachment has %s, prevResult has another IPv6 address", r.ID, at.Addr6)
	}
	return nil
}

// gc detaches whatever this configuration attached on this node and the
// runtime does not list any more.
func (p *plugin) gc(ctx context.Context, d Daemon, c *netConf) error {
	if c.keys["cni.dev/valid-attachments"] == nil && c.keys["cni.dev/attachments"] == nil {
		// Nothing said is not the same as nothing valid; libcni has sent a
		// DEL for whatever it knew by itself.
		fmt.Fprintln(p.log, "nodenet: GC without cni.dev/valid-attachments: nothing collected")
		return nil
	}
	o, ok := d.(observer)
	if !ok {
		return faultf(codeInternal, "the daemon's client cannot list endpoints")
	}
	st, err := o.Status(ctx)
	if err != nil {
		return daemonFault("ask for the node's status", err)
	}
	eps, err := o.Endpoints(ctx)
	if err != nil {
		return daemonFault("list endpoints", err)
	}
	valid := make(map[string]bool, len(c.Valid))
	for _, a := range append(c.Valid, c.ValidOld...) {
		valid[a.ContainerID+"/"+a.IfName] = true
	}
	var errs []error
	for _, e := range eps {
		cid, ifName, ok := strings.Cut(e.ID, "/")
		if !ok || e.Kind != "cni" || e.Node != st.Node || e.Labels[confLabel] != c.Name || valid[e.ID] {
			continue
		}
		v := invocation{containerID: cid, ifName: ifName}
		if err := d.Detach(ctx, detachRequest(e.Network, &v)); err != nil {
			errs = append(errs, fmt.Errorf("detach %s: %w", e.ID, err))
			continue
		}
		fmt.Fprintf(p.log, "nodenet: collected attachment %s\n", e.ID)
	}
	if err := errors.Join(errs...); err != nil {
		return &fault{code: codeInternal, msg: "collect stale attachments", details: err.Error()}
	}
	return nil
}

// status says whether an ADD could succeed now.
func (p *plugin) status(ctx context.Context, d Daemon, c *netConf) error {
	v := invocation{command: cmdAdd, containerID: "status", ifName: "eth0"}
	if _, err := buildRequest(c, &v, p.ipamOnly); err != nil {
		return err
	}
	o, ok := d.(observer)
	if !ok {
		return faultf(codeInternal, "the daemon's client cannot ask for the status")
	}
	st, err := o.Status(ctx)
	if err != nil {
		return &fault{code: codeUnavailable, msg: "the nodenet daemon does not answer", details: err.Error()}
	}
	if p.ipamOnly || c.Type != nameNodenet {
		return nil // the network comes with the configuration
	}
	want := c.network(p.ipamOnly)
	if !slices.ContainsFunc(st.Networks, func(n api.NetworkStatus) bool { return n.Name == want }) {
		return &fault{code: codeUnavailable, msg: "network " + quote(want) + " does not exist on node " + st.Node,
			details: "declare it in the Nodefile: network " + want + " PREFIX"}
	}
	return nil
}
