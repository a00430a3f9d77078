package cni

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestInstall(t *testing.T) {
	dir := t.TempDir()
	binary := filepath.Join(dir, "nodectl")
	if err := os.WriteFile(binary, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	o := InstallOptions{ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Binary: binary}
	link, file := filepath.Join(o.BinDir, "nodenet"), filepath.Join(o.ConfDir, ConfFile)
	install := func(want ...string) {
		t.Helper()
		did, err := Install(o)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, did); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
	}
	refused := func(part string) {
		t.Helper()
		if did, err := Install(o); err == nil || !strings.Contains(err.Error(), part) || len(did) != 0 {
			t.Errorf("did %q, error %v, want one about %s and nothing done", did, err, part)
		}
	}

	install("created "+link+" -> "+binary, "created "+file)
	install("unchanged "+link+" -> "+binary, "unchanged "+file)
	if to, err := os.Readlink(link); err != nil || to != binary {
		t.Errorf("link to %q, %v", to, err)
	}
	// What was written is a configuration that the plugin accepts.
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(`{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "0.4.0",
    "1.0.0",
    "1.1.0"
  ],
  "name": "nodenet",
  "plugins": [
    {
      "type": "nodenet",
      "network": "pods",
      "capabilities": {
        "aliases": true,
        "ips": true,
        "mac": true,
        "portMappings": true
      }
    }
  ]
}
`, string(b)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}

	o.Network, o.Socket = "dmz", "/run/lab.sock"
	install("unchanged "+link+" -> "+binary, "replaced "+file)
	// An older place of the program is ours as well.
	must(t, os.Remove(link))
	must(t, os.Symlink("/usr/local/bin/nodectl", link))
	install("replaced "+link+" -> "+binary, "unchanged "+file)

	must(t, os.WriteFile(file, []byte(`{"cniVersion": "1.0.0", "name": "x", "plugins": [{"type": "calico"}]}`), 0o644))
	refused(ConfFile)
	o.Force = true
	install("unchanged "+link+" -> "+binary, "replaced "+file)
	o.Force = false
	must(t, os.Remove(link))
	must(t, os.WriteFile(link, []byte("somebody's program"), 0o755))
	refused(link)
	o.Force = true
	install("replaced "+link+" -> "+binary, "unchanged "+file)

	o.Binary = filepath.Join(dir, "missing")
	refused("missing")
	for _, d := range []string{o.ConfDir, o.BinDir} {
		if list, err := os.ReadDir(d); err != nil || len(list) != 1 {
			t.Errorf("%s holds %v, %v: want one file and no remains", d, list, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
