package state

// RaiseEpoch raises the epoch of own writes also after the first one, for a
// node that learns while it runs that its epoch counts no longer (see
// Forgotten). It never lowers it.
func (s *Store) RaiseEpoch(e uint64) {
	for {
		cur := s.epoch.Load()
		if e <= cur || s.epoch.CompareAndSwap(cur, e) {
			return
		}
	}
}
