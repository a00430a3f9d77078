// Package state holds the cluster's tables: what every node knows about
// nodes, address blocks, endpoints, services, leases and ring ranges.
//
// It does no I/O of its own. Durability comes from a Log, replication from
// whoever reads heads and buckets and feeds Merge; both are passed in.
//
//	Write (own, durable) ─┐
//	                      ├─► Store ──► Snapshot (immutable) ──► View (what it means)
//	Merge (from peers)  ──┘     │
//	                            └─────► Feed (what changed since)
//
// Each owner signs its head: ID, epoch, seq and the hash of its live records
// (package lthash). A Delta is applied only when the set that results is the
// one that its owner signed, so that relays cannot forge and replicas with one
// mark cannot differ; see MergeFrom.
//
// A record has an ID, a Version and a Value. Four classes differ in who may
// write and how two versions of one record are ordered; see Class.
package state

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"net"
	"strings"
)

// NodeID names a node for life: the first 16 bytes of the SHA-256 of its
// Ed25519 public key, in lower-case base32 without padding (26 characters).
// The zero value names no node.
type NodeID string

var nodeIDEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NodeIDFromKey returns the ID that belongs to a public key.
func NodeIDFromKey(pub ed25519.PublicKey) NodeID {
	sum := sha256.Sum256(pub)
	return NodeID(nodeIDEncoding.EncodeToString(sum[:16]))
}

// Valid reports whether id has the form that NodeIDFromKey gives.
func (id NodeID) Valid() bool {
	b, err := nodeIDEncoding.DecodeString(string(id))
	return err == nil && len(b) == 16
}

// Short returns a prefix for people to read; it is not unique by construction.
func (id NodeID) Short() string {
	if len(id) > 8 {
		return string(id[:8])
	}
	return string(id)
}

// VTEPMAC returns the Ethernet address of the node's VXLAN devices. It is
// derived from the ID, locally administered and unicast, so that it survives
// restarts and needs no agreement.
func (id NodeID) VTEPMAC() net.HardwareAddr {
	sum := sha256.Sum256([]byte("nodenet vtep " + string(id)))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// Class says who writes a record and how its versions are ordered.
type Class uint8

const (
	// Owner records are written by the node in ID.Owner and by nobody else.
	// Versions are ordered by (Epoch, Seq) of that node; there is no conflict.
	Owner Class = 1
	// Cluster records may be written by any node. The last writer wins by
	// hybrid logical clock, then by node ID.
	Cluster Class = 2
	// Lease records are DHCP leases keyed by network and address. The higher
	// generation wins, then the clock, then the node ID.
	Lease Class = 3
	// Ring records say who owns an address range. Only the current owner
	// writes, always with a higher generation.
	Ring Class = 4
)

func (c Class) String() string {
	switch c {
	case Owner:
		return "owner"
	case Cluster:
		return "cluster"
	case Lease:
		return "lease"
	case Ring:
		return "ring"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Kind names the type of a record's value.
type Kind string

// The kinds. A comment gives the class, the key and the value's type.
const (
	KindNode        Kind = "node"        // Owner; "self"; Node
	KindBlock       Kind = "block"       // Owner; "<network>/<prefix>"; Block
	KindEndpoint    Kind = "endpoint"    // Owner; endpoint ID; Endpoint
	KindPublish     Kind = "publish"     // Owner; "<addr>:<port>[-<last>]/<proto>"; Publish
	KindHealth      Kind = "health"      // Owner (the backend's node); "<ns>/<service>/<endpoint ID>"; or Cluster; "<ns>/<service>/<backend>"; Health
	KindNetwork     Kind = "network"     // Owner (Nodefile, CNI); name; Network
	KindService     Kind = "service"     // Owner (Nodefile) or Cluster (command); "<ns>/<name>"; Service
	KindBackend     Kind = "backend"     // Cluster; "<ns>/<service>/<addr>"; Backend
	KindAdmin       Kind = "admin"       // Cluster; "<ns>/<service>/<backend>"; Admin: what an operator said of a backend
	KindVIP         Kind = "vip"         // Cluster; "<ns>/<service>"; VIP: what was allocated for a service
	KindName        Kind = "name"        // Owner or Cluster; "<name> <type>"; Name
	KindReservation Kind = "reservation" // Owner or Cluster; "<network>/<addr>"; Reservation
	KindLease       Kind = "lease"       // Lease; "<network>/<addr>"; LeaseValue
	KindRing        Kind = "ring"        // Ring; "<ring>/<prefix>/<ring ID>/<owner>"; Range
	KindForgotten   Kind = "forgotten"   // Cluster; node ID; Forgotten
)

// ID identifies a record. Owner is empty unless Class is Owner.
type ID struct {
	Class Class  `cbor:"1,keyasint"`
	Kind  Kind   `cbor:"2,keyasint"`
	Owner NodeID `cbor:"3,keyasint,omitempty"`
	Key   string `cbor:"4,keyasint"`
}

func (id ID) String() string {
	if id.Owner != "" {
		return fmt.Sprintf("%s/%s@%s", id.Kind, id.Key, id.Owner.Short())
	}
	return fmt.Sprintf("%s/%s", id.Kind, id.Key)
}

// Validate reports an ID that no record may have.
func (id ID) Validate() error {
	switch {
	case id.Class < Owner || id.Class > Ring:
		return fmt.Errorf("record %q: unknown %s", id.Key, id.Class)
	case id.Kind == "" || len(id.Kind) > 32:
		return fmt.Errorf("record %q: kind of %d bytes: want 1 to 32", id.Key, len(id.Kind))
	case id.Key == "" || len(id.Key) > 512 || strings.ContainsRune(id.Key, 0):
		return fmt.Errorf("record of kind %s: key of %d bytes: want 1 to 512 without NUL", id.Kind, len(id.Key))
	case id.Class == Owner && !id.Owner.Valid():
		return fmt.Errorf("record %s/%s: owner %q is not a node ID", id.Kind, id.Key, id.Owner)
	case id.Class != Owner && id.Owner != "":
		return fmt.Errorf("record %s/%s: a %s record has no owner", id.Kind, id.Key, id.Class)
	}
	return nil
}

// Version orders the versions of one record. Which fields count depends on
// the class: Epoch and Seq for Owner; HLC and Node for Cluster; Gen, HLC and
// Node for Lease and Ring.
type Version struct {
	Epoch uint64 `cbor:"1,keyasint,omitempty"`
	Seq   uint64 `cbor:"2,keyasint,omitempty"`
	HLC   HLC    `cbor:"3,keyasint,omitempty"`
	Gen   uint64 `cbor:"4,keyasint,omitempty"`
	Node  NodeID `cbor:"5,keyasint,omitempty"` // the writer
}

// Record is one row of the tables. Treat it as immutable once it is in a Store.
type Record struct {
	ID      ID      `cbor:"1,keyasint"`
	Version Version `cbor:"2,keyasint"`
	// Deleted makes the record a tombstone; Value is then empty.
	Deleted bool  `cbor:"3,keyasint,omitempty"`
	bucket  uint8 // its BucketOf, once it is in a Store
	// Time is when the record was written by its writer's clock, in Unix
	// seconds: for display and for the age of tombstones, never for order.
	Time int64 `cbor:"4,keyasint,omitempty"`
	// Value is the CBOR of the kind's value type. Fields that this version
	// does not know are kept, because the bytes travel unchanged.
	Value []byte `cbor:"5,keyasint,omitempty"`
	// Base is, in a Cluster record, the clock reading of the version that its
	// writer replaced, 1 when it knew of none; 0: its version does not say. It
	// has no part in the order.
	Base HLC `cbor:"6,keyasint,omitempty"`

	val any // decoded once, when the record enters a Store
}

// Compare orders two versions of the same record: negative when a is older
// than b, zero when they are the same version, positive when a is newer.
func Compare(c Class, a, b Version) int {
	num := func(x, y uint64) int {
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	}
	switch c {
	case Owner:
		if d := num(a.Epoch, b.Epoch); d != 0 {
			return d
		}
		return num(a.Seq, b.Seq)
	case Cluster:
		if d := num(uint64(a.HLC), uint64(b.HLC)); d != 0 {
			return d
		}
		return strings.Compare(string(a.Node), string(b.Node))
	default:
		if d := num(a.Gen, b.Gen); d != 0 {
			return d
		}
		if d := num(uint64(a.HLC), uint64(b.HLC)); d != 0 {
			return d
		}
		return strings.Compare(string(a.Node), string(b.Node))
	}
}
