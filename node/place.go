package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nodenet/state"
)

// placeFile in the state directory says which file of the file system the
// tables were last opened from. A copy of the directory that somebody put back
// holds the name of another file than its own, and with that says that its
// tables may be those of an earlier day. What no such sign can tell is a whole
// file system or machine that was set back: see docs/operations.md.
const placeFile = "place"

// placeOf names a file by its inode and when that was made.
func placeOf(path string) (string, error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_INO|unix.STATX_BTIME, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", path, err)
	}
	s := fmt.Sprintf("inode %d", st.Ino)
	if st.Mask&unix.STATX_BTIME != 0 {
		s += fmt.Sprintf(" born %d.%09d", st.Btime.Sec, st.Btime.Nsec)
	}
	return s, nil
}

// copied reports that the tables were put here by somebody else than this
// daemon, and notes where they are now. Not knowing is no sign.
func (n *Node) copied() bool {
	now, err := placeOf(filepath.Join(n.dir, "state.db"))
	if err != nil {
		n.log.Warn("place of the tables not known", "err", err)
		return false
	}
	path := filepath.Join(n.dir, placeFile)
	was, _ := os.ReadFile(path)
	if strings.TrimSpace(string(was)) == now {
		return false
	}
	moved := len(was) > 0 && n.sharesSpace()
	if moved {
		// First the mark: a crash must not lose what only this file tells.
		if err := durable(filepath.Join(n.dir, restoredFile), []byte("copied\n")); err != nil {
			n.log.Error("the state was copied here, and that could not be noted", "err", err)
			return true
		}
	}
	if err := durable(path, []byte(now+"\n")); err != nil {
		n.log.Warn("place of the tables not noted", "err", err)
	}
	return moved
}

// sharesSpace reports that other nodes have a part in the address space, so
// that they may have changed it since. A node on its own waits for nobody.
func (n *Node) sharesSpace() bool {
	sn := n.store.Snapshot()
	gone := sn.Gone()
	for r, nd := range state.All[state.Node](sn) {
		if r.ID.Owner != n.self && !nd.Left && !gone.Node(r.ID.Owner) {
			return true
		}
	}
	return false
}
