package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// InstallOptions says where Install puts what.
type InstallOptions struct {
	ConfDir string // default /etc/cni/net.d
	BinDir  string // default /opt/cni/bin
	Binary  string // what the link points to; default: the running program
	Network string // default "pods"
	Socket  string // empty: the default socket, not written down
	Name    string // of the CNI network; default "nodenet"
	Force   bool   // overwrite files that are not nodenet's
}

// ConfFile is the name of the configuration that Install writes. Runtimes take
// the first file of the folder.
const ConfFile = "10-nodenet.conflist"

// Install makes container runtimes on this machine use nodenet: it links the
// plugin into BinDir and writes ConfDir/10-nodenet.conflist, in this order and
// each atomically, so that no runtime sees a configuration without its
// plugin. It returns what it did, one line each. Files that are as they should
// be are left alone; files that are not nodenet's are an error, unless Force.
func Install(o InstallOptions) ([]string, error) {
	if o.ConfDir == "" {
		o.ConfDir = "/etc/cni/net.d"
	}
	if o.BinDir == "" {
		o.BinDir = "/opt/cni/bin"
	}
	if o.Network == "" {
		o.Network = "pods"
	}
	if o.Name == "" {
		o.Name = nameNodenet
	}
	if !identifier.MatchString(o.Name) {
		return nil, fmt.Errorf("install CNI configuration: name %q: want letters, digits, '_', '.', '-', a letter or digit first", o.Name)
	}
	if o.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the running program: %w", err)
		}
		o.Binary = exe
	}
	bin, err := filepath.Abs(o.Binary)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", o.Binary, err)
	}
	if fi, err := os.Stat(bin); err != nil {
		return nil, fmt.Errorf("install CNI plugin: %w", err)
	} else if !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("install CNI plugin: %s is not an executable file", bin)
	}
	conf, err := conflist(o)
	if err != nil {
		return nil, err
	}
	link, file := filepath.Join(o.BinDir, nameNodenet), filepath.Join(o.ConfDir, ConfFile)
	// Both are looked at before either is touched.
	linkState, err := lookLink(link, bin, o.Force)
	if err != nil {
		return nil, err
	}
	fileState, err := lookConf(file, conf, o.Force)
	if err != nil {
		return nil, err
	}

	var did []string
	if linkState != unchanged {
		if err := os.MkdirAll(o.BinDir, 0o755); err != nil {
			return did, fmt.Errorf("create %s: %w", o.BinDir, err)
		}
		if err := replaceLink(bin, link); err != nil {
			return did, err
		}
	}
	did = append(did, fmt.Sprintf("%s %s -> %s", linkState, link, bin))
	if fileState != unchanged {
		if err := os.MkdirAll(o.ConfDir, 0o755); err != nil {
			return did, fmt.Errorf("create %s: %w", o.ConfDir, err)
		}
		if err := replaceFile(file, conf); err != nil {
			return did, err
		}
	}
	return append(did, fmt.Sprintf("%s %s", fileState, file)), nil
}

// What happened, or would happen, to a file.
const (
	unchanged = "unchanged"
	created   = "created"
	replaced  = "replaced"
)

type pluginList struct {
	CNIVersion  string       `json:"cniVersion"`
	CNIVersions []string     `json:"cniVersions,omitempty"`
	Name        string       `json:"name"`
	Plugins     []pluginConf `json:"plugins"`
}

type pluginConf struct {
	Type         string          `json:"type"`
	Network      string          `json:"network,omitempty"`
	Socket       string          `json:"socket,omitempty"`
	Capabilities map[string]bool `json:"capabilities,omitempty"`
}

// conflist names 1.0.0 for runtimes that know no later version; those that
// read cniVersions (1.1.0) take the highest they share.
func conflist(o InstallOptions) ([]byte, error) {
	b, err := json.MarshalIndent(pluginList{
		CNIVersion:  "1.0.0",
		CNIVersions: []string{"0.4.0", "1.0.0", "1.1.0"},
		Name:        o.Name,
		Plugins: []pluginConf{{Type: nameNodenet, Network: o.Network, Socket: o.Socket,
			Capabilities: map[string]bool{"portMappings": true, "ips": true, "mac": true, "aliases": true}}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode CNI configuration: %w", err)
	}
	return append(b, '\n'), nil
}

func lookLink(link, bin string, force bool) (string, error) {
	fi, err := os.Lstat(link)
	if errors.Is(err, fs.ErrNotExist) {
		return created, nil
	}
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", link, err)
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		to, err := os.Readlink(link)
		if err != nil {
			return "", fmt.Errorf("read link %s: %w", link, err)
		}
		if to == bin {
			return unchanged, nil
		}
		if slices.Contains([]string{"nodectl", nameNodenet}, filepath.Base(to)) {
			return replaced, nil // an older place of ours
		}
	}
	if fi.IsDir() || !force {
		return "", fmt.Errorf("%s exists and is not nodenet's: move it away, or force", link)
	}
	return replaced, nil
}

func lookConf(file string, want []byte, force bool) (string, error) {
	have, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return created, nil
	}
	if err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	if bytes.Equal(have, want) {
		return unchanged, nil
	}
	var l pluginList
	ours := json.Unmarshal(have, &l) == nil && len(l.Plugins) == 1 && l.Plugins[0].Type == nameNodenet
	if !ours && !force {
		return "", fmt.Errorf("%s exists and holds something else: move it away, or force", file)
	}
	return replaced, nil
}

func replaceLink(to, link string) error {
	dir, err := os.MkdirTemp(filepath.Dir(link), ".nodenet-")
	if err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	defer os.RemoveAll(dir)
	tmp := filepath.Join(dir, "link")
	if err := os.Symlink(to, tmp); err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	if err := os.Rename(tmp, link); err != nil {
		return fmt.Errorf("link %s: %w", link, err)
	}
	return nil
}

// replaceFile writes beside the file, flushes, and renames. The temporary
// name does not end like a configuration, so that no runtime reads it.
func replaceFile(file string, b []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(file), ".nodenet-*.tmp")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", file, err)
		}
	}()
	if _, err = f.Write(b); err != nil {
		return err
	}
	if err = f.Chmod(0o644); err != nil {
		return err
	}
	if err = f.Sync(); err != nil {
		return err
	}
	if err = f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), file)
}
