package node

import (
	"cmp"
	"context"
	"net/http"

	"nodenet/api"
	"nodenet/state"
)

// serviceRoutes adds what concerns single services to the control API.
func (n *Node) serviceRoutes(mux *http.ServeMux) {
	mux.HandleFunc("GET "+api.PathService, func(w http.ResponseWriter, r *http.Request) {
		get(func(ctx context.Context) (*api.Service, error) { return n.serviceNamed(ctx, r.URL.Query().Get("name")) })(w, r)
	})
	mux.HandleFunc("POST "+api.PathBackends, post(n.changeBackend))
	mux.HandleFunc("POST "+api.PathAdmin, post(n.administer))
}

// services lists all services with their backends.
func (n *Node) services(sn *state.Snapshot) []api.Service {
	out := []api.Service{}
	v := sn.View()
	announced := n.announced()
	for s := range v.Services() {
		a := serviceOf(sn, v, s)
		a.Announced = announcementsOf(s, announced)
		out = append(out, a)
	}
	return out
}

// serviceNamed returns one service. Its connections are counted for those who
// may make the node ask all others.
func (n *Node) serviceNamed(ctx context.Context, name string) (*api.Service, error) {
	sn := n.store.Snapshot()
	v := sn.View()
	s := v.Service(serviceKey(name))
	if s == nil {
		return nil, noService(name)
	}
	out := serviceOf(sn, v, s)
	out.Announced = announcementsOf(s, n.announced())
	if allowed(ctx) {
		n.countConns(ctx, v, s, &out)
	}
	return &out, nil
}

func serviceOf(sn *state.Snapshot, v *state.View, s *state.ServiceView) api.Service {
	a := api.Service{
		Name: s.Name, Namespace: s.Namespace, VIP: s.VIP, VIP6: s.VIP6, Headless: s.Headless, External: s.External,
		Select: s.Selector, Source: s.Source, Backends: []api.ServiceBackend{},
		ServiceSettings: settingsOf(&s.Service),
	}
	a.Ready, a.Total = s.Count()
	for _, p := range s.Ports {
		a.Ports = append(a.Ports, api.ServicePort{
			Name: p.Name, Protocol: p.Protocol, Port: p.Port, Last: p.Last, Target: p.Target, TargetName: p.TargetName, NodePort: p.NodePort,
		})
	}
	for i := range s.Backends {
		a.Backends = append(a.Backends, backendOf(sn, v, s, &s.Backends[i]))
	}
	return a
}

func backendOf(sn *state.Snapshot, v *state.View, s *state.ServiceView, b *state.BackendOf) api.ServiceBackend {
	out := api.ServiceBackend{
		Addr: b.Addr, Ports: b.Targets, Name: backendName(v, b), Endpoint: b.Endpoint, Ready: b.Ready, Why: b.Why,
		Weight: int(cmp.Or(b.Declared, b.Weight, 1)), Failed: b.Failed, Share: int(b.Step) * 100 / state.Steps,
	}
	if b.Endpoint == "" {
		out.Port = portOfKey(b.Key)
	}
	if nv := v.NodeByID(b.Node); nv != nil {
		out.Zone = nv.Zone
	}
	if b.Node != "" {
		out.Node = nodeName(v, b.Node)
	}
	if b.By != "" {
		out.By = nodeName(v, b.By)
	}
	if h := v.HealthOf(sn, s, b); h != nil && s.Check != "" {
		out.Since, out.Health = h.Since, "failing"
		if h.OK {
			out.Health = "ok"
		}
	}
	if a, ok := state.Lookup[state.Admin](sn, adminID(s, b)); ok && a.Drain {
		out.Draining, out.Until = true, a.Until
	}
	return out
}

// backendName is what people call a backend; "" of an explicit one.
func backendName(v *state.View, b *state.BackendOf) string {
	if e := v.Endpoint(b.Node, b.Endpoint); e != nil {
		return cmp.Or(e.Name, e.ID)
	}
	return b.Endpoint
}
