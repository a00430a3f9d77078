package gossip

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// A file is replaced by a temporary one that is written, synced and renamed: a
// crash leaves any part of the temporary file beside the old one, or, the
// rename done, the new one. Each time what is read is whole, and the next
// write works.
func TestFilesSurviveACrashAtAnyStep(t *testing.T) {
	secrets := [][]byte{bytes.Repeat([]byte{1}, SecretSize), bytes.Repeat([]byte{2}, SecretSize)}
	var identities [2]*Identity
	for _, c := range []struct {
		file  string
		write func(dir string, i int) error
		read  func(dir string) (any, error)
	}{
		{"cluster.json", func(dir string, i int) error {
			return (&Cluster{ID: []string{"one", "two"}[i], Name: "prod", Seeds: []string{"192.0.2.1:7947"}}).Save(dir)
		}, func(dir string) (any, error) {
			c, err := LoadCluster(dir)
			if err != nil {
				return nil, err
			}
			return c.ID, nil
		}},
		{"cluster.secret", func(dir string, i int) error { return WriteSecret(filepath.Join(dir, "cluster.secret"), secrets[i]) },
			func(dir string) (any, error) {
				b, err := ReadSecret(filepath.Join(dir, "cluster.secret"))
				return string(b), err
			}},
		{"node.key", func(dir string, i int) (err error) {
			os.Remove(filepath.Join(dir, "node.key"))
			identities[i], err = LoadIdentity(dir)
			return err
		}, func(dir string) (any, error) {
			id, err := LoadIdentity(dir)
			if err != nil {
				return nil, err
			}
			return id.ID, nil
		}},
	} {
		t.Run(c.file, func(t *testing.T) {
			dirs := [2]string{t.TempDir(), t.TempDir()}
			var want [2]any
			var content [2][]byte
			for i, dir := range dirs {
				err := c.write(dir, i)
				if err == nil {
					want[i], err = c.read(dir)
				}
				if err == nil {
					content[i], err = os.ReadFile(filepath.Join(dir, c.file))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if want[0] == want[1] {
				t.Fatal("both versions are equal: this shows nothing")
			}
			for n := range len(content[1]) + 2 {
				dir := t.TempDir()
				path := filepath.Join(dir, c.file)
				expect := want[0]
				file, temp := content[0], content[1][:min(n, len(content[1]))]
				if n > len(content[1]) { // renamed
					file, temp, expect = content[1], nil, want[1]
				}
				if err := os.WriteFile(path, file, 0o600); err != nil {
					t.Fatal(err)
				}
				if temp != nil {
					if err := os.WriteFile(filepath.Join(dir, "."+c.file+".1234"), temp, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				if got, err := c.read(dir); err != nil || got != expect {
					t.Fatalf("%d of %d bytes written: read %v, %v, want %v", n, len(content[1]), got, err, expect)
				}
			}
		})
	}
}
