package plugin

import (
	"os"
	"time"
)

// Stamp tells one content of a file from another. The zero value is that of a
// file that is not there.
type Stamp struct {
	size  int64
	mtime time.Time
}

// StampOf looks at a file.
func StampOf(file string) Stamp {
	info, err := os.Stat(file)
	if err != nil {
		return Stamp{}
	}
	return Stamp{size: info.Size(), mtime: info.ModTime()}
}
