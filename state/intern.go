package state

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"
)

// internLimit bounds how many strings, and how many sets of labels, are
// remembered twice over: those met since the last time that there were so
// many, and those before.
const internLimit = 8192

// interner makes equal strings and label sets of records one: a hundred
// thousand endpoints have few networks, owners, port names and labels. It
// remembers the last few thousand. The zero value is ready; it is safe for
// concurrent use.
type interner struct {
	mu      sync.Mutex
	strings generations[string]
	labels  generations[map[string]string]
	key     []byte // of labels, while being made
}

// generations is a map that forgets what was not asked for of late.
type generations[T any] struct{ young, old map[string]T }

// get returns what is there under the key, or else makes it.
func (g *generations[T]) get(key []byte, add func() (string, T)) T {
	if v, ok := g.young[string(key)]; ok {
		return v
	}
	v, ok := g.old[string(key)]
	k := ""
	if ok {
		k = string(key)
	} else {
		k, v = add()
	}
	if g.young == nil || len(g.young) >= internLimit {
		g.old, g.young = g.young, map[string]T{}
	}
	g.young[k] = v
	return v
}

// record makes the strings of a record, and of its value that nobody else
// holds yet, the ones that others have.
func (in *interner) record(r *Record) {
	in.mu.Lock()
	defer in.mu.Unlock()
	intern(in, (*string)(&r.ID.Kind), (*string)(&r.ID.Owner), (*string)(&r.Version.Node))
	switch v := r.val.(type) {
	case *Endpoint:
		if v.ID == r.ID.Key {
			v.ID = r.ID.Key
		}
		intern(in, &v.Network, &v.Namespace, &v.Kind, &v.IfName, &v.Mode, &v.Why)
		for i := range v.Ports {
			intern(in, &v.Ports[i].Name, &v.Ports[i].Protocol)
		}
		v.Labels = in.labelSet(v.Labels)
	case *LeaseValue:
		intern(in, &v.Network, (*string)(&v.Server))
	case *Block:
		intern(in, &v.Network)
	case *Service:
		intern(in, &v.Namespace)
		v.Selector = in.labelSet(v.Selector)
	case *Health:
		intern(in, &v.Why)
	}
}

func intern(in *interner, fields ...*string) {
	for _, s := range fields {
		if *s == "" {
			continue
		}
		in.key = append(in.key[:0], *s...)
		*s = in.strings.get(in.key, func() (string, string) { return *s, *s })
	}
}

func (in *interner) labelSet(m map[string]string) map[string]string {
	if len(m) == 0 {
		return m
	}
	in.key = in.key[:0]
	for _, k := range slices.Sorted(maps.Keys(m)) {
		// With their lengths: whatever a label holds, no two sets look alike.
		in.key = append(binary.AppendUvarint(in.key, uint64(len(k))), k...)
		in.key = append(binary.AppendUvarint(in.key, uint64(len(m[k]))), m[k]...)
	}
	return in.labels.get(in.key, func() (string, map[string]string) { return string(in.key), m })
}
