package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"nodenet/api"
)

// record is what the lab's directory says of it (lab.json).
type record struct {
	Name      string      `json:"name"`
	Binary    string      `json:"binary"`
	Created   time.Time   `json:"created"`
	Nodes     []*Node     `json:"nodes"`
	Netns     []string    `json:"netns"` // paths, beside those of nodes and workloads
	Helpers   []Proc      `json:"helpers,omitempty"`
	Workloads []*Workload `json:"workloads,omitempty"`
}

// Node is a node of the lab.
type Node struct {
	Name   string     `json:"name"`
	Index  int        `json:"index"` // from 1
	Addr   netip.Addr `json:"addr"`  // on the LAN
	Netns  string     `json:"netns"` // path of its namespace
	Dir    string     `json:"dir"`   // Nodefile, log, resolv.conf, hosts, state
	Socket string     `json:"socket"`
	// Proc is the daemon as last started; zero: not started or stopped with Kill.
	Proc Proc `json:"proc"`
}

// Client returns a client for the node's control socket. It works from any
// namespace: unix sockets are files.
func (n *Node) Client() *api.Client { return api.NewClient(n.Socket) }

// Log returns the path of the daemon's log.
func (n *Node) Log() string { return filepath.Join(n.Dir, "log") }

func (n *Node) config() string { return filepath.Join(n.Dir, "Nodefile") }
func (n *Node) state() string  { return filepath.Join(n.Dir, "state") }

func newRecord(o Options, dir string) *record {
	rec := &record{Name: o.Name, Binary: o.Binary, Created: time.Now()}
	for _, name := range []string{nsLAN, nsRouter, nsOutside} {
		rec.Netns = append(rec.Netns, netnsPath(o.Name, name))
	}
	for i := 1; i <= o.Nodes; i++ {
		d := filepath.Join(dir, nodeName(i))
		rec.Nodes = append(rec.Nodes, &Node{
			Name:   nodeName(i),
			Index:  i,
			Addr:   nodeAddr(i),
			Netns:  netnsPath(o.Name, nodeName(i)),
			Dir:    d,
			Socket: filepath.Join(d, "nodectl.sock"),
		})
	}
	return rec
}

func (r *record) node(name string) (*Node, error) {
	for _, n := range r.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return nil, fmt.Errorf("lab %s has no node %s: it has %s to %s", r.Name, name, r.Nodes[0].Name, r.Nodes[len(r.Nodes)-1].Name)
}

// netns returns the paths of all namespaces of the lab.
func (r *record) netns() []string {
	var out []string
	for _, w := range r.Workloads {
		out = append(out, w.Netns)
	}
	for _, n := range r.Nodes {
		out = append(out, n.Netns)
	}
	return append(out, r.Netns...)
}

// procs returns the daemons and helpers.
func (r *record) procs() []Proc {
	var out []Proc
	for _, n := range r.Nodes {
		out = append(out, n.Proc)
	}
	return append(out, r.Helpers...)
}

func (l *Lab) recordFile() string { return filepath.Join(l.dir, "lab.json") }

func (l *Lab) read() (*record, error) {
	b, err := os.ReadFile(l.recordFile())
	if err != nil {
		return nil, fmt.Errorf("read lab record: %w", err)
	}
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read lab record %s: %w", l.recordFile(), err)
	}
	return r, nil
}

// update changes the record under a lock that other processes respect. The
// file is replaced whole, so that a reader never sees half of it.
func (l *Lab) update(fn func(*record) error) error {
	lock, err := os.OpenFile(filepath.Join(l.dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("lock lab: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("lock lab: %w", err)
	}
	r, err := l.read()
	if errors.Is(err, fs.ErrNotExist) {
		r = new(record)
	} else if err != nil {
		return err
	}
	if err := fn(r); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode lab record: %w", err)
	}
	tmp := l.recordFile() + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("write lab record: %w", err)
	}
	if err := os.Rename(tmp, l.recordFile()); err != nil {
		return fmt.Errorf("write lab record: %w", err)
	}
	return nil
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Nodes returns the nodes as the record has them now.
func (l *Lab) Nodes() ([]*Node, error) {
	r, err := l.read()
	if err != nil {
		return nil, err
	}
	return r.Nodes, nil
}

// Node returns node i, counted from 1. It panics when the lab has no such
// node, as an index expression would.
func (l *Lab) Node(i int) *Node {
	nodes, err := l.Nodes()
	if err != nil {
		panic(err)
	}
	return nodes[i-1]
}

// Workloads returns the workloads as the record has them now.
func (l *Lab) Workloads() ([]*Workload, error) {
	r, err := l.read()
	if err != nil {
		return nil, err
	}
	return r.Workloads, nil
}
