package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodenet/api"
	"nodenet/config"
)

// WorkloadOptions describes a workload. Only Name is needed.
type WorkloadOptions struct {
	Name      string
	Namespace string // "": default
	Network   string // "": pods
	Labels    map[string]string
	Ports     []api.Port
	IP        netip.Addr // a wanted address
	Publish   []api.Publish
	Mode      string // "", bridge, none
	// Serve is a TCP port on which a small web server answers with the
	// workload's name and the address it was asked from. 0: none.
	Serve uint16
}

// Workload is a network namespace attached to a node.
type Workload struct {
	Name      string         `json:"name"`
	Namespace string         `json:"namespace"`
	Node      string         `json:"node"`
	Netns     string         `json:"netns"` // path
	Dir       string         `json:"dir"`   // resolv.conf, hosts, log
	Addr      netip.Addr     `json:"addr"`
	Procs     []Proc         `json:"procs,omitempty"`
	Attached  api.Attachment `json:"attached"`
}

// Ref returns the name by which Exec and Detach find the workload.
func (w *Workload) Ref() string { return w.Name + "." + w.Namespace }

// workload finds "web" or "web.apps". A bare name must be the only one.
func (r *record) workload(ref string) (*Workload, error) {
	name, namespace, given := strings.Cut(ref, ".")
	var found []*Workload
	for _, w := range r.Workloads {
		if w.Name == name && (!given || w.Namespace == namespace) {
			found = append(found, w)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("lab %s has no node or workload %s: 'nodectl lab status --name %s' lists them", r.Name, ref, r.Name)
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%s: there is %s and %s: say which", ref, found[0].Ref(), found[1].Ref())
}

// workloadNetns names the namespace of a workload: short where it can be.
func workloadNetns(name, namespace string) string {
	if namespace == "default" {
		return name
	}
	return name + "." + namespace
}

// Attach makes a network namespace and attaches it to node i, counted from 1.
// When it fails it removes what it had made.
func (l *Lab) Attach(ctx context.Context, i int, o WorkloadOptions) (_ *Workload, err error) {
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	if o.Network == "" {
		o.Network = config.DefaultNetwork
	}
	if o.Name == "" || reserved(o.Name) || strings.ContainsAny(o.Name+o.Namespace, "./") {
		return nil, fmt.Errorf("workload name %q in namespace %q: want a host name label that names no part of the lab", o.Name, o.Namespace)
	}
	base := workloadNetns(o.Name, o.Namespace)
	w := &Workload{
		Name: o.Name, Namespace: o.Namespace,
		Netns: netnsPath(l.Name(), base),
		Dir:   filepath.Join(l.dir, "workloads", base),
	}
	err = l.update(func(r *record) error {
		if i < 1 || i > len(r.Nodes) {
			return fmt.Errorf("lab %s has no node %d", r.Name, i)
		}
		for _, other := range r.Workloads {
			if other.Ref() == w.Ref() {
				return fmt.Errorf("lab %s has a workload %s already, on %s", r.Name, w.Ref(), other.Node)
			}
		}
		w.Node = r.Nodes[i-1].Name
		r.Workloads = append(r.Workloads, w)
		return nil
	})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			err = errors.Join(err, l.Detach(clean, w.Ref()))
		}
	}()
	if err := addNetns(w.Netns); err != nil {
		return nil, err
	}
	client := l.Node(i).Client()
	defer client.Close()
	w.Attached, err = client.Attach(ctx, api.AttachRequest{
		Network: o.Network, Netns: w.Netns, IfName: "eth0",
		Name: o.Name, Namespace: o.Namespace, Labels: o.Labels, Ports: o.Ports,
		IP: o.IP, Mode: o.Mode, Publish: o.Publish,
	})
	if err != nil {
		return nil, fmt.Errorf("attach %s to %s: %w", w.Ref(), w.Node, err)
	}
	w.Addr = w.Attached.Addr.Addr()
	if err := writeWorkloadFiles(w); err != nil {
		return nil, err
	}
	if err := l.save(w); err != nil {
		return nil, err
	}
	if o.Serve != 0 {
		err = l.serve(ctx, w, o.Serve)
	}
	return w, err
}

func writeWorkloadFiles(w *Workload) error {
	if err := os.MkdirAll(w.Dir, 0o755); err != nil {
		return fmt.Errorf("create directory of %s: %w", w.Ref(), err)
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n::1 localhost\n%s %s\n", w.Addr, w.Name)
	for name, content := range map[string]string{"hosts": hosts, "resolv.conf": w.Attached.ResolvConf} {
		if err := os.WriteFile(filepath.Join(w.Dir, name), []byte(content), 0o644); err != nil {
			return fmt.Errorf("write %s of %s: %w", name, w.Ref(), err)
		}
	}
	return writeNetnsResolvConf(w.Netns, w.Attached.ResolvConf)
}

// save puts the workload into the record in the place of its older self.
func (l *Lab) save(w *Workload) error {
	return l.update(func(r *record) error {
		for i := range r.Workloads {
			if r.Workloads[i].Ref() == w.Ref() {
				r.Workloads[i] = w
				return nil
			}
		}
		return fmt.Errorf("workload %s was removed meanwhile", w.Ref())
	})
}

// serve starts the small web server in a workload and waits until it listens.
func (l *Lab) serve(ctx context.Context, w *Workload, port uint16) error {
	rec, err := l.read()
	if err != nil {
		return err
	}
	v, err := l.View(w.Ref())
	if err != nil {
		return err
	}
	p, err := start(v, filepath.Join(w.Dir, "log"), rec.Binary, "lab", "serve", "--name", w.Name, "--port", strconv.Itoa(int(port)))
	if err != nil {
		return err
	}
	w.Procs = append(w.Procs, p)
	if err := l.save(w); err != nil {
		return errors.Join(err, stopAll(ctx, p))
	}
	err = poll(ctx, 10*time.Second, func() error {
		return inNetns(w.Netns, func() error {
			c, err := net.DialTCP("tcp4", nil, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(port)})
			if err == nil {
				c.Close()
			}
			return err
		})
	})
	if err != nil {
		return fmt.Errorf("start the web server of %s: %w: %s", w.Ref(), err, tail(filepath.Join(w.Dir, "log"), 3))
	}
	return nil
}

// Detach ends a workload's processes, detaches it from its node, if that
// runs, and removes its namespace.
func (l *Lab) Detach(ctx context.Context, ref string) error {
	rec, err := l.read()
	if err != nil {
		return err
	}
	w, err := rec.workload(ref)
	if err != nil {
		return err
	}
	errs := []error{stopAll(ctx, w.Procs...)}
	if n, err := rec.node(w.Node); err == nil && n.Proc.Alive() {
		client := n.Client()
		err := client.Detach(ctx, api.DetachRequest{Name: w.Name, Namespace: w.Namespace})
		client.Close()
		if err != nil {
			errs = append(errs, fmt.Errorf("detach %s from %s: %w", w.Ref(), w.Node, err))
		}
	}
	errs = append(errs, removeNetns(w.Netns), os.RemoveAll(w.Dir))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return l.update(func(r *record) error {
		r.Workloads = slices.DeleteFunc(r.Workloads, func(o *Workload) bool { return o.Ref() == w.Ref() })
		return nil
	})
}
