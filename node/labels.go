package node

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"nodenet/config"
	"nodenet/state"
)

// Labels by which an endpoint declares a service of its namespace:
//
//	nodenet.io/service=web               the service's name
//	nodenet.io/service-port=80:http      its ports, PORT[-LAST][:TARGET][/PROTO], by commas or blanks
//	nodenet.io/service-check=http /up    its check, as the Nodefile has it
//	nodenet.io/service-families=ipv6     its IP versions, as the Nodefile has them
//	nodenet.io/weight=3                  this endpoint's share; counts in every service that selects it

// labelService is the service that an endpoint's labels declare; nil: none.
// Its backends are all endpoints of the namespace with that label.
func labelService(namespace string, labels map[string]string) (*config.Service, error) {
	if text, ok := labels[state.LabelWeight]; ok {
		if w, err := strconv.Atoi(text); err != nil || w < 1 || w > state.MaxWeight {
			return nil, fmt.Errorf("label %s=%s: want a number from 1 to %d", state.LabelWeight, text, state.MaxWeight)
		}
	}
	name, ok := labels[state.LabelService]
	if !ok {
		for _, l := range []string{state.LabelServicePort, state.LabelServiceCheck, state.LabelServiceFamilies} {
			if _, ok := labels[l]; ok {
				return nil, fmt.Errorf("label %s without %s=NAME: add it", l, state.LabelService)
			}
		}
		return nil, nil
	}
	s := &config.Service{Namespace: cmp.Or(namespace, config.DefaultNamespace), Name: name, Select: map[string]string{state.LabelService: name}}
	split := func(r rune) bool { return r == ',' || r == ' ' }
	for _, word := range strings.FieldsFunc(labels[state.LabelServicePort], split) {
		p, err := config.ParsePort(word)
		if err != nil {
			return nil, fmt.Errorf("label %s: %w", state.LabelServicePort, err)
		}
		s.Ports = append(s.Ports, p)
	}
	if text, ok := labels[state.LabelServiceFamilies]; ok {
		var err error
		if s.Families, err = config.ParseFamilies(strings.FieldsFunc(text, split)); err != nil {
			return nil, fmt.Errorf("label %s: %w", state.LabelServiceFamilies, err)
		}
	}
	if words := strings.Fields(labels[state.LabelServiceCheck]); len(words) > 0 {
		pr, err := config.ParseProbe(words)
		if err != nil {
			return nil, fmt.Errorf("label %s: %w", state.LabelServiceCheck, err)
		}
		s.Probe = pr
	}
	if len(s.Ports) == 0 {
		return nil, fmt.Errorf("label %s=%s: no port, add the label %s=PORT[:TARGET]", state.LabelService, name, state.LabelServicePort)
	}
	for _, f := range s.Check() {
		return nil, fmt.Errorf("labels of service %s: %s", s.FullName(), f.Text)
	}
	return s, nil
}

// checkLabels says what is wrong with the service that labels declare, on this
// node too.
func (n *Node) checkLabels(namespace string, labels map[string]string) error {
	s, err := labelService(namespace, labels)
	if err != nil || s == nil {
		return err
	}
	for _, f := range s.CheckIn(&n.cfg.Services) {
		return invalid("labels of service %s: %s", s.FullName(), f.Text)
	}
	return nil
}

// runLabels keeps the services that this node's endpoints declare by labels as
// its own records. Equal ones of several nodes are one service; it goes with
// the last endpoint that declares it.
func (n *Node) runLabels(ctx context.Context) error {
	select {
	case <-n.declared:
	case <-ctx.Done():
		return nil
	}
	feed := n.store.Subscribe()
	defer feed.Close()
	all := true
	for {
		if all {
			if err := n.declareLabels(ctx); err != nil && ctx.Err() == nil {
				n.log.Error("services that labels declare not brought up to date", "err", err)
			}
		}
		select {
		case <-feed.C():
			var changed []state.Record
			changed, all, _ = feed.Take()
			// A Nodefile that no longer has a service may leave one to labels.
			all = all || slices.ContainsFunc(changed, func(r state.Record) bool {
				return r.ID.Owner == n.self && (r.ID.Kind == state.KindEndpoint || r.ID.Kind == state.KindService)
			})
		case <-ctx.Done():
			return nil
		}
	}
}

// declareLabels writes what differs. Of a service that this node's Nodefile
// has, labels declare nothing: the record is the Nodefile's.
func (n *Node) declareLabels(ctx context.Context) error {
	ops := func(sn *state.Snapshot) (ops []state.Op) {
		want := n.labelServices(sn)
		for rec, s := range state.All[state.Service](sn) {
			if rec.ID.Owner != n.self {
				continue
			}
			w, ok := want[rec.ID.Key]
			switch {
			case s.Source != sourceLabel:
				delete(want, rec.ID.Key)
			case !ok:
				ops = append(ops, state.Del(state.Owner, state.KindService, rec.ID.Key))
			case reflect.DeepEqual(w, *s):
				delete(want, rec.ID.Key)
			}
		}
		for _, key := range slices.Sorted(maps.Keys(want)) {
			ops = append(ops, state.Put(state.Owner, state.KindService, key, want[key]))
		}
		return ops
	}
	if len(ops(n.store.Snapshot())) == 0 {
		return nil
	}
	_, err := n.store.Write(ctx, func(sn *state.Snapshot) ([]state.Op, error) { return ops(sn), nil })
	return err
}

// labelServices are the services that this node's endpoints declare, by key.
// Where two declare one differently, the older endpoint's word counts.
func (n *Node) labelServices(sn *state.Snapshot) map[string]state.Service {
	want, by := map[string]state.Service{}, map[string]*state.Endpoint{}
	for e := range sn.View().EndpointsOf(n.self) {
		if e.Labels[state.LabelService] == "" {
			continue
		}
		s, err := labelService(e.Namespace, e.Labels)
		if err != nil || s == nil {
			continue // refused when it was attached; it came by an older version
		}
		old := by[s.Namespace+"/"+s.Name]
		if old == nil || cmp.Or(cmp.Compare(e.Created, old.Created), strings.Compare(e.ID, old.ID)) < 0 {
			by[s.Namespace+"/"+s.Name] = e.Endpoint
			want[s.Namespace+"/"+s.Name] = serviceRecord(s, sourceLabel)
		}
	}
	return want
}
