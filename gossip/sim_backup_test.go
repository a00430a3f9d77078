package gossip

import (
	"testing"
	"time"
)

// The same as TestEpochRollbackFromBackup, but the restored node is cut off at
// first: it goes on alone after a while and writes before it can learn what
// others hold of it. What it was told between the backup and the restore is
// lost to it; what the tables say must still be the same on every node, and
// what it says of itself must be what it knows.
func TestEpochRollbackFromBackupAlone(t *testing.T) {
	for _, skew := range []time.Duration{0, -24 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			simulate(t, 8, 3, func(s *sim) {
				n := s.nodes[1]
				s.work(5 * time.Second)
				s.settle()
				backup := n.log.clone()
				for range 3 {
					s.work(4 * time.Second)
					s.settle()
					n.kill(true)
					n.start()
					s.settle()
				}
				n.kill(true)
				s.isolate(n)
				time.Sleep(2 * time.Second) // a right clock gives another epoch
				n.log, n.restored, s.rolledBack = backup, true, true
				n.forget()
				n.skew.Store(int64(skew))
				n.start()
				s.work(15 * time.Second)
				s.heal()
				s.settle()
			})
		})
	}
}
