package dns

import (
	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
	"nodenet/state"
)

// A node that starts without reaching any other answers from what it had
// saved. It says so in its status and, with EDNS, in each answer about the
// cluster (RFC 8914), until the first other node is heard.

// noteSaved looks for others that are heard.
func (s *Server) noteSaved(v *state.View) {
	others := 0
	for i := range v.Nodes {
		n := &v.Nodes[i]
		if n.ID == v.Self {
			continue
		}
		others++
		s.heard = s.heard || n.State == state.Alive || n.State == state.Suspect
	}
	saved := others > 0 && !s.heard
	if was := s.saved.Swap(saved); was == saved {
		return
	}
	if saved {
		s.log.Warn("dns answers from saved state: no other node heard since start", "rev", v.Rev)
	} else {
		s.log.Info("dns answers are current again", "rev", v.Rev)
	}
}

// explainSaved marks an answer from saved state.
func explainSaved(q *plugin.Query, m *wire.Msg) {
	code := wire.ExtendedErrorCodeStaleAnswer
	if m.Rcode == wire.RcodeNameError {
		code = wire.ExtendedErrorCodeStaleNXDOMAINAnswer
	}
	q.Explain(code, "saved state, no other node heard since start")
}
