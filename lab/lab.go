// Package lab runs a whole cluster on one machine: a LAN in network
// namespaces, a real daemon in each node's namespace, and workloads attached
// to them. The demonstration, the end-to-end tests and a person trying an
// idea all use it.
//
//	        outside 203.0.113.10 (DNS, HTTP)
//	           │
//	        router 203.0.113.1 / 192.168.1.1
//	           │
//	───────────┴── LAN 192.168.1.0/24 (a bridge in a namespace of its own)
//	   │            │            │
//	 node1 .11    node2 .12    node3 .13     each with `nodectl run`
//	  │   │        │            │
//	 web1 web2    web3         …             workloads: `nodectl attach`
//
// No link appears in the machine's own namespace. Namespaces are pinned as
// /run/netns/<lab>-<name>, so that `ip netns exec` works as well; everything
// else lives under /run/nodenet-lab/<lab>, and goes away with Down.
package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// DefaultRoot is the directory that holds one directory a lab.
const DefaultRoot = "/run/nodenet-lab"

// How the second and later nodes come into the cluster.
const (
	JoinSecret = "secret" // a copy of the cluster's secret and a join line
	JoinToken  = "token"  // `nodectl token` on node1, `nodectl join` on the node
)

// Options says what to bring up. The zero value is a lab "demo" of three
// nodes over VXLAN.
type Options struct {
	Name    string // "": demo
	Nodes   int    // 0: 3
	Overlay string // vxlan (default), routes, auto
	// Nodefile is what every node's Nodefile holds beside its node and cluster
	// blocks. Empty: one network "pods" with the default ranges.
	// {$NODENET_NODE} and {$NODENET_INDEX} differ from node to node.
	Nodefile string
	Join     string        // JoinSecret (default) or JoinToken
	Binary   string        // the nodectl to run; "": this program
	Root     string        // "": DefaultRoot
	Timeout  time.Duration // for the cluster to converge; 0: one minute
	// Idle leaves the daemons out: namespaces and links only.
	Idle bool
	// Progress is told each step in one line; nil: nobody.
	Progress func(string)
}

func (o *Options) setDefaults() error {
	if o.Name == "" {
		o.Name = "demo"
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Overlay == "" {
		o.Overlay = "vxlan"
	}
	if o.Join == "" {
		o.Join = JoinSecret
	}
	if o.Root == "" {
		o.Root = DefaultRoot
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	if o.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program's file: %w", err)
		}
		o.Binary = exe
	}
	switch {
	case o.Join != JoinSecret && o.Join != JoinToken:
		return fmt.Errorf("join with %q: want %s or %s", o.Join, JoinSecret, JoinToken)
	case o.Overlay != "vxlan" && o.Overlay != "routes" && o.Overlay != "auto":
		return fmt.Errorf("overlay %q: want vxlan, routes or auto", o.Overlay)
	}
	return checkPlan(o.Name, o.Nodes)
}

// Lab is a running lab. Its methods may be used by several goroutines and by
// several processes at once: what they share is in the lab's directory.
type Lab struct {
	dir      string
	progress func(string)
}

// Up makes a lab and waits until its cluster has converged. When it fails it
// takes down what it had made, and its error tells what kept the cluster from
// converging. When ctx ends before that, the same happens.
func Up(ctx context.Context, o Options) (_ *Lab, err error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if err := checkPrivileges(); err != nil {
		return nil, err
	}
	l := &Lab{dir: filepath.Join(o.Root, o.Name), progress: o.Progress}
	if err := os.MkdirAll(o.Root, 0o755); err != nil {
		return nil, fmt.Errorf("create lab directory: %w", err)
	}
	if err := os.Mkdir(l.dir, 0o755); errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("lab %s exists already (%s): use it, take it down with 'nodectl lab down --name %s', or give another --name", o.Name, l.dir, o.Name)
	} else if err != nil {
		return nil, fmt.Errorf("create lab directory: %w", err)
	}
	defer func() {
		if err != nil {
			// ctx may have ended: that is often why we are here.
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err = errors.Join(err, l.Down(clean))
		}
	}()
	// The record names everything before it exists: whatever happens from
	// here on, Down finds it.
	rec := newRecord(o, l.dir)
	if err := l.update(func(r *record) error { *r = *rec; return nil }); err != nil {
		return nil, err
	}
	nodes := fmt.Sprintf("%d nodes", o.Nodes)
	if o.Nodes == 1 {
		nodes = "1 node"
	}
	o.Progress(fmt.Sprintf("LAN %s with %s, a router and an outside host", lanPrefix, nodes))
	if err := l.build(rec, serviceRange(o.Nodefile)); err != nil {
		return nil, err
	}
	if o.Idle {
		return l, nil
	}
	if err := l.boot(ctx, o); err != nil {
		return nil, err
	}
	o.Progress("waiting for the cluster to converge")
	start := time.Now()
	wait, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	if err := l.WaitConverged(wait); err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("converged after %.1f s", time.Since(start).Seconds()))
	return l, nil
}

// Open finds a lab that is up. root "" is DefaultRoot.
func Open(root, name string) (*Lab, error) {
	if root == "" {
		root = DefaultRoot
	}
	if err := checkPlan(name, 1); err != nil {
		return nil, err
	}
	l := &Lab{dir: filepath.Join(root, name), progress: func(string) {}}
	if _, err := l.read(); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("there is no lab %s: bring it up with 'nodectl lab up --name %s': %w", name, name, fs.ErrNotExist)
	} else if err != nil {
		return nil, err
	}
	return l, nil
}

// Name returns the lab's name.
func (l *Lab) Name() string { return filepath.Base(l.dir) }

// Dir returns the directory that holds all the lab's files.
func (l *Lab) Dir() string { return l.dir }

// Down ends the lab's processes and removes its namespaces, mounts and files.
// It goes on after an error, and may be called again. Only processes that the
// lab itself has started are signalled.
func (l *Lab) Down(ctx context.Context) error {
	rec, err := l.read()
	if errors.Is(err, fs.ErrNotExist) {
		// Nothing was made yet, or an earlier Down was cut short at its end.
		return l.removeDir()
	} else if err != nil {
		return fmt.Errorf("take down lab %s: %w", l.Name(), err)
	}
	var errs []error
	for _, w := range rec.Workloads {
		errs = append(errs, stopAll(ctx, w.Procs...))
	}
	errs = append(errs, stopAll(ctx, rec.procs()...))
	for _, ns := range rec.netns() {
		errs = append(errs, removeNetns(ns))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("take down lab %s: %w", l.Name(), err)
	}
	return l.removeDir()
}

func (l *Lab) removeDir() error {
	if err := os.RemoveAll(l.dir); err != nil {
		return fmt.Errorf("remove lab directory: %w", err)
	}
	os.Remove(filepath.Dir(l.dir)) // fails while there are other labs
	return nil
}
