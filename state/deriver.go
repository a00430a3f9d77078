package state

// edit is one change of a record: what was there before and what is now.
type edit struct{ old, new *Record }

type deriver struct{}

func (d *deriver) note(rev uint64, edits []edit) {}
func (d *deriver) view(sn *Snapshot) *View       { return derive(sn) }
