package dns

import (
	"encoding/binary"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	wire "github.com/miekg/dns"
)

// hotCache holds packed copies of answers that the cache has given lately, so
// that the receive loop can give them again. It is filled by hits alone, and
// an entry is short-lived: every few seconds the cache itself sees the
// question again and can count it, prefetch it or say something else.
type hotCache struct {
	cache  *cache
	seed   maphash.Seed
	shards [hotShards]hotShard
}

const (
	hotShards = 16
	hotKept   = 1024 // answers a shard
	hotTime   = 5 * time.Second
	hotSize   = defaultBufsize // of a body at most
	keyTail   = 3              // of a key, behind the name: type and flags
)

type hotShard struct {
	mu      sync.RWMutex
	answers map[string]*hotAnswer // by name, type, flags
}

// hotAnswer is an answer of the cache with where its TTLs are.
type hotAnswer struct {
	packed
	ttls   []uint16 // offsets in the body
	stored time.Time
	until  time.Time

	clients *clientIndex // that it is good for; nil: all, see completed.go
}

func newHotCache(c *cache) *hotCache {
	h := &hotCache{cache: c, seed: maphash.MakeSeed()}
	for i := range h.shards {
		h.shards[i].answers = make(map[string]*hotAnswer)
	}
	return h
}

// hotFlags is what an answer depends on beside name and type.
func hotFlags(do, cd, ad bool) (f byte) {
	for i, set := range []bool{do, cd, ad} {
		if set {
			f |= 1 << i
		}
	}
	return f
}

// respond answers from a packed copy, or returns 0.
func (h *hotCache) respond(r *responder, name string) int {
	a := h.find(r, name)
	if a == nil || h.cache.block.holds(name) {
		return 0
	}
	if (a.rcode == wire.RcodeNameError || strings.IndexByte(name, '.') == len(name)-1) && r.searches(name) {
		return 0
	}
	return a.write(r, byCache)
}

// find returns the copy for the question in hand, or nil.
func (h *hotCache) find(r *responder, name string) *hotAnswer {
	n := copy(r.name[:], name) // perhaps it lies there already
	binary.BigEndian.PutUint16(r.name[n:], r.qtype)
	r.name[n+2] = hotFlags(r.do, r.cd, r.query[3]&0x20 != 0)
	key := r.name[:n+keyTail]
	s := &h.shards[maphash.Bytes(h.seed, key)%hotShards]
	s.mu.RLock()
	a := s.answers[string(key)]
	s.mu.RUnlock()
	if a == nil || !r.now.Before(a.until) {
		return nil
	}
	return a
}

// write answers with a copy, its TTLs counted down, or returns 0.
func (a *hotAnswer) write(r *responder, by source) int {
	at := r.whole(&a.packed, by)
	if at == 0 {
		return 0
	}
	body := r.out[at-len(a.body) : at]
	if a.runN > 1 && (r.plan.rotate || by == bySearch) { // order has moved the TTLs
		agePacked(body, a.age(r.now))
		return at
	}
	for _, off := range a.ttls {
		b := body[off:]
		binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)-a.age(r.now))
	}
	return at
}

// age is in seconds, rounded up: a record is never kept for longer than it
// was given. It is less than every TTL of the answer.
func (a *hotAnswer) age(now time.Time) uint32 {
	return uint32((now.Sub(a.stored) + time.Second - 1) / time.Second)
}

// agePacked takes age off the TTL of every record.
func agePacked(body []byte, age uint32) {
	for off := 0; off < len(body); {
		end, _, ok := skipRecord(body, off)
		if !ok {
			return
		}
		b := body[ttlOf(body, off):]
		binary.BigEndian.PutUint32(b, binary.BigEndian.Uint32(b)-age)
		off = end
	}
}

// ttlOf returns where the TTL of the record at off is.
func ttlOf(b []byte, off int) int {
	for b[off] != 0 && b[off]&0xC0 != 0xC0 {
		off += 1 + int(b[off])
	}
	if off++; b[off-1] != 0 {
		off++
	}
	return off + 4
}

// learn takes over an answer that the cache has just given: the packed
// message and whether nothing was left out of it for want of room.
func (h *hotCache) learn(q *query, msg []byte, whole bool, now time.Time) {
	if q.Cached {
		h.store(q, msg, whole, now, nil)
	}
}

// store keeps an answer until it is old, or, with clients, until they are
// others.
func (h *hotCache) store(q *query, msg []byte, whole bool, now time.Time, clients *clientIndex) {
	if !whole || len(q.EDE) > 0 || q.Class != wire.ClassINET || !counted(q.Type) || !isPlain(q.Name) || q.Depth > 0 {
		return
	}
	rcode := msg[3] & 0xF
	if rcode != wire.RcodeSuccess && rcode != wire.RcodeNameError || msg[2]&0x02 != 0 {
		return
	}
	qlen := len(q.Name) + 1
	if q.Name == "." {
		qlen = 1
	}
	if opt := q.Msg.IsEdns0(); opt != nil { // it is the last record, and bare
		if n := binary.BigEndian.Uint16(msg[10:]); n > 0 && len(msg) >= headerLen+optLen {
			msg = append([]byte(nil), msg[:len(msg)-optLen]...)
			binary.BigEndian.PutUint16(msg[10:], n-1)
		}
	}
	a := &hotAnswer{stored: now, clients: clients}
	a.qtype, a.ad = q.Type, msg[3]&0x20 != 0
	a.fill(msg, qlen, msg[2]&0x04 != 0)
	if a.body == nil || len(a.body) > hotSize {
		return
	}
	least := uint32(1 << 31)
	for off := 0; off < len(a.body); {
		end, rrType, ok := skipRecord(a.body, off)
		if !ok || rrType == wire.TypeOPT {
			return
		}
		ttl := ttlOf(a.body, off)
		a.ttls = append(a.ttls, uint16(ttl))
		least = min(least, binary.BigEndian.Uint32(a.body[ttl:]))
		off = end
	}
	if least < 2 || len(a.ttls) == 0 {
		return
	}
	a.until = now.Add(min(hotTime, time.Duration(least-1)*time.Second, max(time.Second, time.Duration(least)*time.Second/2)))
	key := append([]byte(q.Name), byte(q.Type>>8), byte(q.Type), hotFlags(q.DO, q.Msg.CheckingDisabled, q.Msg.AuthenticatedData))
	s := &h.shards[maphash.Bytes(h.seed, key)%hotShards]
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.answers) >= hotKept {
		for k, o := range s.answers { // what is over, and at least one
			if delete(s.answers, k); now.Before(o.until) {
				break
			}
		}
	}
	s.answers[string(key)] = a
}

// isPlain reports whether a name is one that the packed path reads.
func isPlain(name string) bool {
	for i := range len(name) {
		if name[i] != '.' && plainByte[name[i]] != name[i] {
			return false
		}
	}
	return true
}
