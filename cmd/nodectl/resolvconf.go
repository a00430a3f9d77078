package main

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nodenet/api"
)

// netnsEtcDir holds, per named network namespace, files that ip-netns(8)
// mounts over those of /etc.
const netnsEtcDir = "/etc/netns"

// resolvMark begins the first line of the files that we write. The words
// after it name the attachment, so that detach finds the file again.
const resolvMark = "# nodenet attachment "

var errForeignFile = errors.New("there is one that nodenet did not write")

func resolvOwner(id, namespace, name string) string {
	return fmt.Sprintf("%sid=%s name=%s.%s", resolvMark, id, name, namespace)
}

// saveResolvConf writes the resolver configuration of an attachment to a
// path. It leaves alone what somebody else wrote there.
func saveResolvConf(path string, a *api.Attachment, namespace, name string) error {
	switch line, err := firstLine(path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("look at %s: %w", path, err)
	case !strings.HasPrefix(line, resolvMark):
		return fmt.Errorf("write %s: %w", path, errForeignFile)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	content := resolvOwner(a.ID, namespace, name) + "\n" + a.ResolvConf
	// Written in place: a running `ip netns exec` holds a mount of this inode.
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// removeResolvConf removes the files under dir that saveResolvConf wrote for
// an attachment, named by its ID or by its name, and the folders this empties.
func removeResolvConf(dir, id, namespace, name string) {
	paths, _ := filepath.Glob(filepath.Join(dir, "*", "resolv.conf"))
	for _, path := range paths {
		line, err := firstLine(path)
		if err != nil || !strings.HasPrefix(line, resolvMark) {
			continue
		}
		words := strings.Fields(strings.TrimPrefix(line, resolvMark))
		for _, w := range words {
			if id != "" && w == "id="+id || name != "" && w == "name="+name+"."+namespace {
				if os.Remove(path) == nil {
					os.Remove(filepath.Dir(path)) // fails while other files are in it
				}
				break
			}
		}
	}
}

func firstLine(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	sc.Scan()
	return sc.Text(), sc.Err()
}
