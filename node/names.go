package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	mdns "github.com/miekg/dns"

	"nodenet/api"
	"nodenet/state"
)

// nameList returns the static DNS records.
func (n *Node) nameList(context.Context) ([]api.Name, error) {
	out := []api.Name{}
	for rec, v := range state.All[state.Name](n.store.Snapshot()) {
		out = append(out, apiName(rec.ID.Key, *v))
	}
	slices.SortFunc(out, func(a, b api.Name) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Type, b.Type), strings.Compare(a.Target, b.Target))
	})
	return out, nil
}

func apiName(key string, v state.Name) api.Name {
	return api.Name{Key: key, Name: v.Name, Type: v.Type, Target: v.Target}
}

// nameKey makes addresses of one name records of their own, so that two nodes
// that add one each lose neither; of CNAMEs there is one.
func nameKey(v state.Name) string {
	if v.Type == "CNAME" {
		return v.Name + " CNAME"
	}
	return v.Name + " " + v.Type + " " + v.Target
}

// addName stores a static DNS record for the whole cluster.
func (n *Node) addName(ctx context.Context, r api.Name) (*api.Name, error) {
	if err := n.waitDeclared(ctx); err != nil {
		return nil, err
	}
	v, err := parseName(r)
	if err != nil {
		return nil, err
	}
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		for rec, o := range state.All[state.Name](sn) {
			if o.Name != v.Name || rec.ID.Key == nameKey(v) {
				continue
			}
			if v.Type == "CNAME" || o.Type == "CNAME" {
				return nil, &api.Error{Code: api.CodeExists, Message: fmt.Sprintf(
					"%s has %s %s already, and nothing may stand beside a CNAME: run `nodectl name rm %s` first", o.Name, o.Type, o.Target, o.Name)}
			}
		}
		return []state.Op{state.Put(state.Cluster, state.KindName, nameKey(v), v)}, nil
	})
	if err != nil {
		return nil, err
	}
	n.settle(ctx, rev)
	out := apiName(nameKey(v), v)
	return &out, nil
}

func parseName(r api.Name) (state.Name, error) {
	v := state.Name{Name: plainName(r.Name), Type: strings.ToUpper(r.Type), Target: r.Target}
	if err := checkHostName(v.Name); err != nil {
		return v, invalid("name %s: %v", r.Name, err)
	}
	switch v.Type {
	case "A", "AAAA":
		a, err := netip.ParseAddr(r.Target)
		if err != nil || a.Zone() != "" || a.Unmap().Is4() != (v.Type == "A") {
			return v, invalid("name %s: %s %q: want an %s", v.Name, v.Type, r.Target, map[string]string{"A": "IPv4 address", "AAAA": "IPv6 address"}[v.Type])
		}
		v.Target = a.Unmap().String()
	case "CNAME":
		v.Target = plainName(r.Target)
		if err := checkHostName(v.Target); err != nil {
			return v, invalid("name %s: CNAME %s: %v", v.Name, r.Target, err)
		}
		if v.Target == v.Name {
			return v, invalid("name %s: a CNAME to itself", v.Name)
		}
	default:
		return v, invalid("name %s: type %q: want A, AAAA or CNAME", v.Name, r.Type)
	}
	return v, nil
}

// plainName is a domain name in the form that records hold: lower case,
// without the final dot.
func plainName(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// checkHostName reports what DNS or a host name rules out. A leading * label
// is left to zone files.
func checkHostName(s string) error {
	if _, ok := mdns.IsDomainName(s); !ok || s == "" {
		return fmt.Errorf("not a domain name")
	}
	for l := range strings.SplitSeq(s, ".") {
		// SRV-like names have labels that begin with an underscore.
		if !isLabel(strings.TrimPrefix(l, "_")) {
			return fmt.Errorf("label %q: want a-z, 0-9 and -, at most 63 characters", l)
		}
	}
	return nil
}

// removeName removes the record with a key, or all records of a name.
func (n *Node) removeName(ctx context.Context, key string) error {
	if err := n.waitDeclared(ctx); err != nil {
		return err
	}
	rev, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) {
		var ops []state.Op
		for rec, v := range state.All[state.Name](sn) {
			if rec.ID.Class == state.Cluster && (rec.ID.Key == key || v.Name == plainName(key)) {
				ops = append(ops, state.Del(state.Cluster, state.KindName, rec.ID.Key))
			}
		}
		if len(ops) == 0 {
			return nil, &api.Error{Message: fmt.Sprintf("no static name %s: `nodectl name ls` lists them", key), Code: api.CodeNotFound}
		}
		return ops, nil
	})
	if err != nil {
		return err
	}
	n.settle(ctx, rev)
	return nil
}
