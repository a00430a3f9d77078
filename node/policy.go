package node

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"nodenet/api"
	"nodenet/config"
	"nodenet/state"
)

// policyRoutes adds policies to the control API.
func (n *Node) policyRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+api.PathPolicies, get(n.policyList))
	mux.HandleFunc("POST "+api.PathPolicies, post(n.addPolicy))
	mux.HandleFunc("DELETE "+api.PathPolicies, remove("name", n.removePolicy))
	mux.HandleFunc("GET "+api.PathPolicyTest, func(w http.ResponseWriter, r *http.Request) {
		if !allowed(r.Context()) { // it makes nodes list all elements
			fail(w, &api.Error{Message: "not allowed: only root and members of group nodenet may test policies", Code: api.CodeForbidden})
			return
		}
		get(func(ctx context.Context) (api.PolicyTest, error) { return n.policyTest(ctx, r.URL.Query()) })(w, r)
	})
}

// policyRecord is what a Nodefile says.
func policyRecord(c *config.Policy) state.Policy {
	rules := func(in []config.PolicyRule) (out []state.PolicyRule) {
		for _, r := range in {
			var sr state.PolicyRule
			for _, p := range r.Peers {
				sr.Peers = append(sr.Peers, state.PolicyPeer(p))
			}
			for _, p := range r.Ports {
				sr.Ports = append(sr.Ports, state.PolicyPort{Protocol: p.Protocol, First: p.First, Last: p.Last})
			}
			out = append(out, sr)
		}
		return out
	}
	return state.Policy{
		Namespace: c.Namespace, Name: c.Name, Selector: c.Select, Ingress: rules(c.Ingress), Egress: rules(c.Egress),
		DenyIngress: c.DenyIngress, DenyEgress: c.DenyEgress, Source: sourceNodefile,
	}
}

func (n *Node) policyList(context.Context) ([]api.Policy, error) {
	v := n.store.Snapshot().View()
	out := []api.Policy{}
	for _, p := range v.Policies {
		out = append(out, apiPolicy(v, p))
	}
	return out, nil
}

func apiPolicy(v *state.View, p *state.Policy) api.Policy {
	rules := func(in []state.PolicyRule) (out []api.PolicyRule) {
		for _, r := range in {
			var ar api.PolicyRule
			for _, p := range r.Peers {
				ap := api.PolicyPeer{Namespace: p.Namespace, Labels: p.Labels, Except: p.Except, Node: p.Node}
				if p.Prefix.IsValid() {
					ap.Prefix = &p.Prefix
				}
				ar.Peers = append(ar.Peers, ap)
			}
			for _, p := range r.Ports {
				ar.Ports = append(ar.Ports, api.PolicyPort(p))
			}
			out = append(out, ar)
		}
		return out
	}
	out := api.Policy{
		Namespace: p.Namespace, Name: p.Name, Select: p.Selector, Ingress: rules(p.Ingress), Egress: rules(p.Egress),
		DenyIngress: p.DenyIngress, DenyEgress: p.DenyEgress, Source: p.Source,
	}
	for e := range v.Endpoints() {
		if p.Selects(e.Endpoint) {
			out.Selects++
		}
	}
	return out
}

// addPolicy stores a policy for the whole cluster.
func (n *Node) addPolicy(ctx context.Context, q api.Policy) (*api.Policy, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	p, err := parsePolicy(q)
	if err != nil {
		return nil, err
	}
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if err := n.inNodefile(sn, p.Key(), p.FullName(), "change"); err != nil {
			return nil, err
		}
		return []state.Op{state.Put(state.Cluster, state.KindPolicy, p.Key(), p)}, nil
	})
	if err != nil {
		return nil, err
	}
	n.settle(ctx, rev)
	out := apiPolicy(n.store.Snapshot().View(), &p)
	return &out, nil
}

// inNodefile refuses to touch a policy that a node's file declares.
func (n *Node) inNodefile(sn *state.Snapshot, key, name, do string) error {
	for rec, o := range state.All[state.Policy](sn) {
		if o.Key() == key && rec.ID.Class == state.Owner {
			return &api.Error{Code: api.CodeReadOnly, Message: fmt.Sprintf("policy %s is declared in the Nodefile of %s: %s it there",
				name, nodeName(sn.View(), rec.ID.Owner), do)}
		}
	}
	return nil
}

// removePolicy deletes a policy made by command. name is NAME or NAME.NAMESPACE.
func (n *Node) removePolicy(ctx context.Context, name string) error {
	if err := n.waitDeclared(ctx); err != nil {
		return err
	}
	policy, ns, ok := strings.Cut(name, ".")
	if !ok {
		ns = "default"
	}
	key := ns + "/" + policy
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		if _, ok := state.Lookup[state.Policy](sn, state.ID{Class: state.Cluster, Kind: state.KindPolicy, Key: key}); !ok {
			if err := n.inNodefile(sn, key, name, "remove"); err != nil {
				return nil, err
			}
			return nil, &api.Error{Message: fmt.Sprintf("no policy %s: `nodectl policy ls` lists them", name), Code: api.CodeNotFound}
		}
		return []state.Op{state.Del(state.Cluster, state.KindPolicy, key)}, nil
	})
	if err != nil {
		return err
	}
	n.settle(ctx, rev)
	return nil
}

func parsePolicy(q api.Policy) (state.Policy, error) {
	p := state.Policy{
		Namespace: cmp.Or(q.Namespace, "default"), Name: q.Name, Selector: q.Select,
		DenyIngress: q.DenyIngress, DenyEgress: q.DenyEgress, Source: sourceCommand,
	}
	if !isLabel(p.Name) || !isLabel(p.Namespace) {
		return p, invalid("policy name %s.%s: want DNS labels (a-z, 0-9 and -, at most 63 characters)", p.Name, p.Namespace)
	}
	if len(q.Ingress)+len(q.Egress) == 0 && !q.DenyIngress && !q.DenyEgress {
		return p, invalid("policy %s says nothing: add ingress or egress rules, or deny a direction", p.FullName())
	}
	var err error
	if p.Ingress, err = parseRules(q.Ingress); err == nil {
		p.Egress, err = parseRules(q.Egress)
	}
	if err != nil {
		return p, invalid("policy %s: %v", p.FullName(), err)
	}
	return p, nil
}

func parseRules(in []api.PolicyRule) (out []state.PolicyRule, err error) {
	for _, r := range in {
		var sr state.PolicyRule
		for _, a := range r.Peers {
			p := state.PolicyPeer{Namespace: a.Namespace, Labels: a.Labels, Except: a.Except, Node: a.Node}
			endpoints := a.Namespace != "" || len(a.Labels) > 0
			switch {
			case a.Node && (a.Prefix != nil || endpoints), a.Prefix != nil && endpoints, !a.Node && a.Prefix == nil && !endpoints:
				return nil, fmt.Errorf("a peer is one of: the nodes, a prefix, or endpoints by namespace and labels")
			case len(a.Except) > 0 && a.Prefix == nil:
				return nil, fmt.Errorf("except %s: without a prefix that it is part of", a.Except[0])
			case a.Namespace != "" && a.Namespace != config.AnyNamespace && !isLabel(a.Namespace):
				return nil, fmt.Errorf("namespace %q: want a DNS label or *", a.Namespace)
			}
			if a.Prefix != nil {
				p.Prefix = *a.Prefix
				for _, x := range append([]netip.Prefix{p.Prefix}, p.Except...) {
					if !x.IsValid() || x != x.Masked() || x.Bits() < p.Prefix.Bits() || !p.Prefix.Contains(x.Addr()) {
						return nil, fmt.Errorf("prefix %s: not a prefix without host bits, within %s", x, p.Prefix)
					}
				}
			}
			sr.Peers = append(sr.Peers, p)
		}
		for _, a := range r.Ports {
			if protoNumber(a.Protocol) == 0 || a.First == 0 || a.Last < a.First {
				return nil, fmt.Errorf("port %d-%d/%s: want a range from 1 to 65535, tcp, udp or sctp", a.First, a.Last, a.Protocol)
			}
			sr.Ports = append(sr.Ports, state.PolicyPort(a))
		}
		out = append(out, sr)
	}
	return out, nil
}
