package api

import "net/netip"

// Announcement says which node answers ARP and neighbour discovery for an
// external address of a service.
type Announcement struct {
	Addr netip.Addr `json:"addr"`
	Node string     `json:"node,omitempty"` // who was elected; empty: nobody
	Here bool       `json:"here,omitempty"` // it is the node that was asked
	// State is known on the elected node: "announced", "probing", "waiting",
	// "yielded" to the node To, or "in use by a stranger".
	State   string `json:"state,omitempty"`
	To      string `json:"to,omitempty"`
	Device  string `json:"device,omitempty"` // on the elected node
	MAC     string `json:"mac,omitempty"`
	Problem string `json:"problem,omitempty"` // what is wrong, in one sentence
}
