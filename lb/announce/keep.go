package announce

import (
	"net/netip"
	"slices"
	"time"
)

// keep has the kernel answer for what this node holds, so that it goes on
// while the daemon is restarted. Where it cannot, the daemon answers alone.
type keep struct {
	s       *Speaker
	keeper  Keeper              // nil: none
	before  map[netip.Addr]bool // answered for when the daemon started
	started time.Time
	now     []Station
	next    time.Time // when it is to be told again
	broken  bool
}

func (k *keep) open(s *Speaker) {
	k.s, k.started, k.before = s, time.Now(), map[netip.Addr]bool{}
	var err error
	if k.keeper, err = s.opt.System.Keeper(); err == nil {
		var list []netip.Addr
		list, err = k.keeper.Kept()
		for _, a := range list {
			k.before[a] = true
		}
	}
	if err != nil {
		s.log.Warn("external addresses will not be answered for during a restart", "err", err)
	}
}

func (k *keep) close() {
	if k.keeper != nil {
		_ = k.keeper.Close() // what the kernel has stays
	}
}

// had reports whether an address was answered for when the daemon started, and
// no other node can have taken it since.
func (k *keep) had(a netip.Addr) bool {
	return k.before[a] && time.Since(k.started) < keepTime
}

// sync tells the kernel what is held, when that differs or is due, and returns
// when it is due again. Until the node is ready for the first time what was
// kept before stays untouched: it ends by itself.
func (k *keep) sync(ready bool, now time.Time) time.Time {
	if k.keeper == nil || !ready && len(k.before) > 0 && now.Sub(k.started) < keepTime {
		return time.Time{}
	}
	var want []Station
	for addr, v := range k.s.claims {
		if v.phase != held || v.port == nil {
			continue
		}
		i := slices.IndexFunc(want, func(s Station) bool { return s.Link.Index == v.port.link.Index })
		if i < 0 {
			i = len(want)
			want = append(want, Station{Link: v.port.link})
		}
		want[i].Addrs = append(want[i].Addrs, addr)
	}
	slices.SortFunc(want, func(a, b Station) int { return a.Link.Index - b.Link.Index })
	for i := range want {
		slices.SortFunc(want[i].Addrs, netip.Addr.Compare)
	}
	same := slices.EqualFunc(k.now, want, func(a, b Station) bool { return sameStation(a, b) && slices.Equal(a.Addrs, b.Addrs) })
	if same && (len(want) == 0 && len(k.before) == 0 || now.Before(k.next)) {
		return k.next
	}
	err := k.keeper.Keep(want)
	if broken := err != nil; broken != k.broken {
		k.broken = broken
		if broken {
			k.s.log.Warn("external addresses are not answered for during a restart", "err", err)
		} else {
			k.s.log.Info("external addresses are answered for during a restart again")
		}
	}
	k.now, k.before, k.next = want, nil, time.Time{}
	if len(want) > 0 {
		k.next = now.Add(keepEvery)
	}
	return k.next
}
