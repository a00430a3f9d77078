package announce

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"nodenet/state"
)

// Status is the speaker in one line, and each address.
type Status struct {
	Desired, Applied uint64 // revisions
	OK               bool
	Detail           string
	Error, Fix       string
	Addrs            []AddressStatus // sorted by address
}

// AddressStatus is one external address as this node sees it. What is here
// about the announcement itself (State and what follows) is known for
// addresses of this node only.
type AddressStatus struct {
	Addr     netip.Addr
	Services []string
	Owner    state.NodeID // by this node's election; empty: nobody, see Why
	Name     string       // of Owner
	Why      string
	Mine     bool
	State    string // "announced", "probing", "waiting", "yielded", "in use by a stranger"
	Since    time.Time
	Link     string
	MAC      MAC
	To       state.NodeID // who has it while this node yields
	Stranger MAC          // a host that is no node and claims it; zero: none
}

// Trouble says what is wrong with an address in one sentence; "": nothing.
func (a *AddressStatus) Trouble() string {
	switch {
	case a.Owner == "":
		return a.Why
	case a.Stranger != MAC{} && a.State == contested.String():
		return fmt.Sprintf("in use by %s, which is no node: it is not taken while that host answers", a.Stranger)
	case a.Stranger != MAC{}:
		return fmt.Sprintf("also claimed by %s, which is no node", a.Stranger)
	case a.Mine && a.State == waiting.String():
		return cmp.Or(a.Why, "not ready")
	}
	return ""
}

// publish makes the status of a plan that was brought about.
func (s *Speaker) publish(p *Plan, rev uint64) {
	now := time.Now()
	list := make([]AddressStatus, 0, len(p.Addrs))
	holds := 0
	for i := range p.Addrs {
		a := &p.Addrs[i]
		st := AddressStatus{Addr: a.Addr, Services: a.Services, Owner: a.Owner, Name: a.Name, Why: a.Why, Mine: a.Owner == p.Self}
		if v := s.claims[a.Addr]; v != nil && st.Mine {
			st.State, st.Since, st.Why, st.To = v.phase.String(), v.since, v.why, v.to
			if v.port != nil {
				st.Link, st.MAC = v.port.link.Name, v.port.link.MAC
			}
			if !v.rivalAt.IsZero() && (v.phase == contested || now.Sub(v.rivalAt) < conflictShow) {
				st.Stranger = v.rival
			}
			if v.phase == held {
				holds++
			}
		}
		list = append(list, st)
	}
	s.m.held.Set(float64(holds))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status.Applied, s.status.Addrs = rev, list
}

// Status reports the newest outcome. Its zero revision means that nothing was
// applied yet.
func (s *Speaker) Status() Status {
	s.mu.Lock()
	st := s.status
	s.mu.Unlock()
	st.Addrs = slices.Clone(st.Addrs)
	mine := 0
	var trouble []string
	for i := range st.Addrs {
		a := &st.Addrs[i]
		if a.Mine && a.State == held.String() {
			mine++
		}
		if t := a.Trouble(); t != "" {
			trouble = append(trouble, fmt.Sprintf("%s: %s", a.Addr, t))
		}
	}
	st.Detail = fmt.Sprintf("%d of %d external addresses announced here", mine, len(st.Addrs))
	if len(trouble) > 0 && st.Error == "" {
		st.Error = strings.Join(trouble, "; ")
		st.Fix = "see `nodectl service show`, and docs/operations.md about external addresses"
	}
	st.OK = st.Error == ""
	return st
}
