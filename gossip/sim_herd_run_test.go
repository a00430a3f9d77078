package gossip

import (
	"flag"
	"testing"
	"testing/synctest"
	"time"
)

var herdNodes = flag.Int("herd.nodes", 200, "nodes of the large simulated cluster")

func TestHerdX(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r0 := time.Now()
		h := newHerd(t, herdOptions{nodes: *herdNodes, seed: 1})
		defer h.close()
		h.lossy(0)
		t.Log("made", time.Since(r0))
		t.Log(h.meshed(30*time.Second), time.Since(r0), h.degree())
		for range 5 {
			d := h.spread(5 * time.Second)
			t.Log(len(d), d[len(d)/2], d[len(d)*99/100], d[len(d)-1])
			time.Sleep(time.Second)
		}
		for range 3 {
			b := h.net.sent
			time.Sleep(5 * time.Second)
			s := h.net.sent.minus(b)
			t.Logf("%.0f B/s a node, %+v, degree %.1f", float64(s.wire())/5/float64(len(h.nodes)), s, h.degree())
		}
	})
}
