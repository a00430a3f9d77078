package node

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	mdns "github.com/miekg/dns"

	"nodenet/api"
	"nodenet/dns"
	"nodenet/state"
)

// parseQuestion reads name and type of a question.
func parseQuestion(q api.DNSQuery) (typ uint16, err error) {
	if _, ok := mdns.IsDomainName(mdns.Fqdn(q.Name)); !ok || q.Name == "" {
		return 0, invalid("dns query: %q is not a domain name", q.Name)
	}
	typ, ok := mdns.StringToType[strings.ToUpper(cmp.Or(q.Type, "A"))]
	if !ok {
		return 0, invalid("dns query: %q is not a record type", q.Type)
	}
	return typ, nil
}

// trace asks as query does and tells what happened on the way.
func (n *Node) trace(ctx context.Context, q api.DNSQuery) (*api.DNSTrace, error) {
	typ, err := parseQuestion(q)
	if err != nil {
		return nil, err
	}
	out := &api.DNSTrace{Name: q.Name, Type: mdns.TypeToString[typ], From: q.From, Server: n.cfg.Services.DNS.String()}
	full := mdns.Fqdn(q.Name)
	for _, name := range n.searchNames(q) {
		m := new(mdns.Msg)
		m.SetQuestion(name, typ)
		start := time.Now()
		r, steps, err := n.dns.Trace(ctx, m, n.clientFor(q.From), q.TCP)
		if err != nil {
			return nil, fmt.Errorf("dns trace %s: %w", name, err)
		}
		try := api.DNSTry{
			Name: name, Search: strings.TrimPrefix(strings.TrimPrefix(name, full), "."), Rcode: mdns.RcodeToString[r.Rcode],
			Answer: rrText(r.Answer), Micros: time.Since(start).Microseconds(),
		}
		for _, s := range steps {
			try.Steps = append(try.Steps, n.step(s))
		}
		out.Tries = append(out.Tries, try)
		if r.Rcode == mdns.RcodeSuccess && len(r.Answer) > 0 {
			break
		}
	}
	return out, nil
}

func (n *Node) step(s dns.Step) api.DNSStep {
	out := api.DNSStep{
		Block: s.Block, Plugin: s.Plugin, Depth: s.Depth, Name: s.Name, Type: mdns.TypeToString[s.Type],
		Decision: s.Decision, Rcode: s.Rcode, Origin: s.Origin, Upstream: s.Upstream, Error: s.Err,
		AgeMillis: s.Age.Milliseconds(), TTLMillis: s.TTL.Milliseconds(), Micros: s.Took.Microseconds(),
	}
	for _, src := range s.Sources {
		out.Records = append(out.Records, n.source(src))
	}
	return out
}

// source finds who wrote a record of the cluster, and when. A service or a
// name may be in a Nodefile or have been made by a command: of several records
// the newest is shown.
func (n *Node) source(s dns.Source) api.DNSSource {
	out := api.DNSSource{Kind: s.Kind, Key: s.Key}
	sn := n.store.Snapshot()
	var found *state.Record
	take := func(r state.Record) {
		if found == nil || r.Time > found.Time {
			found = &r
		}
	}
	switch state.Kind(s.Kind) {
	case state.KindService:
		for r, v := range state.All[state.Service](sn) {
			if v.Namespace+"/"+v.Name == s.Key {
				take(r)
			}
		}
	case state.KindEndpoint:
		for r, v := range state.All[state.Endpoint](sn) {
			if v.ID == s.Key && string(r.ID.Owner) == s.Owner {
				take(r)
			}
		}
	case state.KindLease:
		for r, v := range state.All[state.LeaseValue](sn) {
			if v.Server == state.NodeID(s.Owner) && strings.HasSuffix(s.Key, v.Addr.String()) {
				take(r)
			}
		}
	case state.KindNode:
		for r := range state.All[state.Node](sn) {
			if string(r.ID.Owner) == s.Owner {
				take(r)
			}
		}
	case state.KindName:
		for r, v := range state.All[state.Name](sn) {
			if v.Name+" "+v.Type+" "+v.Target == s.Key {
				take(r)
			}
		}
	}
	if found == nil {
		return out
	}
	writer := cmp.Or(found.ID.Owner, found.Version.Node)
	out.Node, out.Written = nodeName(sn.View(), writer), found.Time
	switch v := found.Version; found.ID.Class {
	case state.Owner:
		out.Version = fmt.Sprintf("%d.%d", v.Epoch, v.Seq)
	case state.Cluster:
		out.Version = v.HLC.String()
	default:
		out.Version = fmt.Sprintf("%d", v.Gen)
	}
	return out
}

// waitPause is how often a name is asked for that others than the cluster
// answer: a file or another server announces no change.
const waitPause = time.Second

// maxDNSWait bounds how long a request may wait.
const maxDNSWait = time.Hour

// waitName waits until a name has an answer: whenever the zones change, and
// from time to time for names that come from elsewhere.
func (n *Node) waitName(ctx context.Context, q api.DNSWait) (*api.DNSAnswer, error) {
	timeout := 30 * time.Second
	if q.TimeoutMillis != 0 {
		timeout = time.Duration(q.TimeoutMillis) * time.Millisecond
	}
	if timeout <= 0 || timeout > maxDNSWait {
		return nil, invalid("dns wait: timeout %s: want more than 0 and up to %s", timeout, maxDNSWait)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(waitPause)
	defer tick.Stop()
	last := "no answer"
	for {
		changed := n.dns.Changed() // before asking: no change is missed
		a, err := n.query(ctx, q.DNSQuery)
		switch {
		case err == nil && a.Rcode == mdns.RcodeToString[mdns.RcodeSuccess] && len(a.Answer) > 0:
			return a, nil
		case err == nil:
			last = a.Rcode
			if last == mdns.RcodeToString[mdns.RcodeSuccess] {
				last = "no such record"
			}
		case ctx.Err() == nil:
			return nil, err
		}
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return nil, &api.Error{Code: api.CodeNotReady, Message: fmt.Sprintf("%s has no %s after %s: %s; `nodectl dns trace %s` shows why",
				q.Name, cmp.Or(strings.ToUpper(q.Type), "A"), timeout, last, q.Name)}
		}
	}
}
