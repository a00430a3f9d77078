package labs

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"nodenet/lab"
	"nodenet/lb/announce"
	"nodenet/state"
	"nodenet/test/scenario"
)

// afterDeath is how soon after the others know of a node's death its external
// address answers again.
const afterDeath = 2 * time.Second

func TestLab25ExternalAddress(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/25-external-address.md", "Lab 25: an address on the LAN")
	s.AddressesVary()
	s.Say(`
		A node port needs a node's address, and what if that node is down? An external address is one of the LAN's own,
		which no machine has. One of the nodes, chosen by all of them without a word, answers ARP for it; when that
		node dies, another does. That is what MetalLB's layer 2 mode and keepalived are for.`)
	s.Up(lab.Options{Name: "lab25", Nodes: 3, Nodefile: pinned})
	addr := addressOf(s, 1, 2)
	url := "http://" + addr + "/"
	s.Say("Two pods, both on node3:")
	web1 := s.Workload(3, "web1", "--label app=web")
	web1.Serve(8080)
	web2 := s.Workload(3, "web2", "--label app=web")
	web2.Serve(8080)
	s.Run("node3", "nodectl service add web --port 80:8080 --select app=web --balance maglev --address "+addr+" --announce")
	for _, node := range []string{"node1", "node2", "node3"} {
		announcer(s, node, addr, "node1")
	}
	s.Say("Every node says who answers. It is node1 this time; of several addresses each node gets its share.")
	s.Want(s.Run("node1", "nodectl service show web"), `^address +`+addr+` announced by node1 \(this node\), [0-9a-f:]+ at eth0$`)
	s.Want(s.Run("node2", "nodectl service show web"), `^address +`+addr+` announced by node1$`)

	s.Say("A machine on the LAN, that knows nothing of the cluster:")
	pc := s.Host("pc", "192.168.1.50")
	first := s.Match(pc.Run(curl+url), `^(web\d) saw `)
	node1, node2 := macOf(s, "node1"), macOf(s, "node2")
	s.Want(pc.Run("ip neigh show "+addr), `lladdr `+node1)
	s.Say("That is node1's interface, which does not have the address: it is in no routing table, and no program can use it as its own.")
	out := s.Run("node1", "ip -br address show dev eth0")
	s.Want(out, `192\.168\.1\.11`)
	s.Reject(out, strings.ReplaceAll(addr, ".", `\.`)+`/`)
	s.Say("With `maglev` every node sends one client to the same pod:")
	s.Want(pc.Run("nodectl lab get -n 20 "+url), `^\s*20 `+first+`$`)

	s.Say("## A machine dies\n\nThe pc asks again and again, and says so when there was no answer for a while:")
	s.File("watch.sh", `ok=$(date +%s%3N)
while sleep 0.02; do
    if who=$(curl -s -m 0.3 $1); then
        now=$(date +%s%3N)
        [ $((now - ok)) -lt 1000 ] || echo "no answer for $((now - ok)) ms, then: $who"
        ok=$now
    fi
done
`)
	watch := pc.Start("sh watch.sh " + url)
	s.Run(scenario.Machine, "nodectl lab cut node1")
	s.Run(scenario.Machine, "nodectl lab kill node1")
	gap := failover(s, "node2", "node1", pc, url)
	t.Logf("%s answered again %s after node2 knew that node1 is dead", addr, gap)
	if gap > afterDeath {
		t.Errorf("%s answered again %s after node2 knew that node1 is dead, want %s", addr, gap, afterDeath)
	}
	announcer(s, "node3", addr, "node2")
	s.Eventually("the watch has said so", scenarioTimeout, func() error { return contains(watch.Output(), "no answer for") })
	s.Say("Most of that time is what it takes to be sure of the death. The same pod answers:")
	s.Want(s.Show(watch), `^no answer for \d+ ms, then: `+first+` saw `)
	watch.Stop()
	s.Want(pc.Run("ip neigh show "+addr), `lladdr `+node2)
	s.Want(s.Run("node3", "nodectl service show web"), `^address +`+addr+` announced by node2$`)

	s.Say("It comes back, and the address with it. Nobody notices:")
	watch = pc.Start("sh watch.sh " + url)
	s.Run(scenario.Machine, "nodectl lab heal node1")
	s.Run(scenario.Machine, "nodectl lab start node1")
	announcer(s, "node2", addr, "node1")
	s.Eventually("the pc's packets go to node1", scenarioTimeout, func() error {
		out, err := pc.Exec("ip neigh show " + addr)
		return errors.Join(err, contains(out, node1))
	})
	s.Want(pc.Run(curl+url), `^`+first+` saw `)
	quiet(s, watch)

	s.Say("## A daemon dies\n\n" + `A restart, an upgrade or a crash of the daemon is no reason to move the address. The
		kernel has the rule that answers ARP, for ten seconds after the daemon last told it to:`)
	s.Want(s.Run("node1", "nft list table netdev nodenet"), addr+` timeout 10s expires`, `arp operation set reply`)
	s.Say("So also those get an answer who ask for the first time. The pc forgets what it knows before each question:")
	s.File("forgetful.sh", `ok=$(date +%s%3N)
while sleep 0.02; do
    ip neigh flush to $2
    if who=$(curl -s -m 0.3 $1); then
        now=$(date +%s%3N)
        [ $((now - ok)) -lt 1000 ] || echo "no answer for $((now - ok)) ms, then: $who"
        ok=$now
    fi
done
`)
	took := takeovers(s, "node2") + takeovers(s, "node3")
	watch = pc.Start("sh forgetful.sh " + url + " " + addr)
	s.Run(scenario.Machine, "nodectl lab kill -9 node1")
	s.Shell(scenario.Machine, "sleep 1")
	s.Run(scenario.Machine, "nodectl lab start node1")
	announcer(s, "node1", addr, "node1")
	s.Eventually("node1 announces", scenarioTimeout, func() error {
		out, err := s.Exec("node1", "nodectl service show web")
		return errors.Join(err, contains(out, "(this node), "+node1))
	})
	quiet(s, watch)
	if n := takeovers(s, "node2") + takeovers(s, "node3") - took; n > 0 {
		t.Errorf("while the daemon was restarted others took the address %d times", n)
	}

	s.Say("## A switch dies\n\n" + `node2 and a phone hang on a second switch, and its cable to the first is pulled. Each
		side has the address:`)
	phone := s.Host("phone", "192.168.1.51")
	s.Shell(scenario.Machine, `
LAN=lab25-lan
ip -n $LAN link add lan1 type bridge
ip -n $LAN link set lan1 up
ip -n $LAN link set node2 master lan1
ip -n $LAN link set phone master lan1`)
	s.Eventually("each side has the address", 30*time.Second, func() error {
		_, err1 := pc.Exec(curl + url)
		out, err2 := s.Exec("node2", "nodectl service show web")
		return errors.Join(err1, err2, contains(out, "announced by node2 (this node)"))
	})
	until(s, "node3", "nodectl status", `node2 +dead`)
	s.Want(s.Run("node2", "nodectl service show web"), `announced by node2 \(this node\), `+node2+` at eth0`)
	s.Want(s.Run("node3", "nodectl service show web"), `announced by node1$`)
	phone.Run("ping -q -c 1 -W 1 " + addr)
	s.Want(phone.Run("ip neigh show "+addr), `lladdr `+node2)
	s.Say("The cable is back. node2 falls silent at once, and node1 announces again, so that nobody stays misled:")
	s.Shell(scenario.Machine, `
LAN=lab25-lan
ip -n $LAN link set node2 master lan0
ip -n $LAN link set phone master lan0
ip -n $LAN link del lan1`)
	announcer(s, "node2", addr, "node1")
	s.Eventually("the phone has learned it", scenarioTimeout, func() error {
		out, err := phone.Exec("ip neigh show " + addr)
		return errors.Join(err, contains(out, node1))
	})
	s.Want(phone.Run(curl+url), `^web\d saw `)
	s.Want(phone.Run("ip neigh show "+addr), `lladdr `+node1)

	s.Say("## An address that somebody has\n\nnodenet asks before it takes an address, and leaves it to whoever answers:")
	s.Run("node3", "nodectl service add clash --port 80:8080 --select app=web --address 192.168.1.50 --announce")
	s.Eventually("somebody has found the pc", scenarioTimeout, func() error {
		for _, node := range []string{"node1", "node2", "node3"} {
			if out, err := s.Exec(node, "nodectl service show clash"); err == nil && strings.Contains(out, "in use by") {
				return nil
			}
		}
		return errors.New("nobody has")
	})
	s.Want(s.Shell(scenario.Machine, `for n in node1 node2 node3; do nodectl lab exec $n -- nodectl service show clash; done | grep 'in use'`),
		`192\.168\.1\.50 .*in use by [0-9a-f:]+, which is no node`)
	s.Run("node3", "nodectl service rm clash")

	s.Say("## Without an address on the LAN\n\n" + `The VIPs themselves can be reached from outside, by a route to any node: it is what
		` + "`minikube tunnel`" + ` sets up. Routers that speak no routing protocol take a static one; a machine of your own:`)
	vip := s.Match(s.Run("node1", "nodectl service show web"), `^vip +(\S+)`)
	for i := 1; i <= 3; i++ {
		pc.Run(fmt.Sprintf("ip route replace 10.96.0.0/12 via 192.168.1.1%d", i))
		s.Want(pc.Run(curl+"http://"+vip+"/"), `^`+first+` saw `)
	}
	s.Say("The router of this lab has such a route, so the host behind it gets there as well; what is no service is dropped:")
	s.Want(s.Run("outside", curl+"http://"+vip+"/"), `^web\d saw `)
	s.Fail("outside", curl+"http://10.96.0.99/")
}

// addressOf picks an address of the LAN whose owner will be one node, and
// whose next owner another: who it is depends on the nodes' keys.
func addressOf(s *scenario.Scenario, owner, next int) string {
	s.T().Helper()
	nodes, err := s.Lab.Nodes()
	if err != nil {
		s.T().Fatal(err)
	}
	v := state.View{}
	var ids []state.NodeID
	for _, n := range nodes {
		c := n.Client()
		st, err := c.Status(s.T().Context())
		c.Close()
		if err != nil {
			s.T().Fatal(err)
		}
		ids = append(ids, state.NodeID(st.NodeID))
		v.Nodes = append(v.Nodes, state.NodeView{
			ID: state.NodeID(st.NodeID), State: state.Alive, Serving: true, Self: n.Index == 1,
			Node: state.Node{Name: n.Name, LANs: []state.LAN{{Addr: netip.PrefixFrom(n.Addr, 24)}}},
		})
	}
	var addrs []netip.Addr
	for i := 200; i < 250; i++ {
		addrs = append(addrs, netip.AddrFrom4([4]byte{192, 168, 1, byte(i)}))
	}
	web := &state.ServiceView{Service: state.Service{Name: "web", Announce: true, Addresses: addrs}}
	for _, a := range announce.Elect(state.NewView(v, nil, []*state.ServiceView{web})).Addrs {
		if a.Order[0].Node == ids[owner-1] && a.Order[1].Node == ids[next-1] {
			return a.Addr.String()
		}
	}
	s.T().Fatal("none of 50 addresses has the owners that the page tells of")
	return ""
}

// announcer waits until a node says that the address is announced by another.
func announcer(s *scenario.Scenario, node, addr, by string) {
	s.T().Helper()
	until(s, node, "nodectl service show web", strings.ReplaceAll(addr, ".", `\.`)+` announced by `+by+`\b`)
}

func macOf(s *scenario.Scenario, node string) string {
	s.T().Helper()
	out, err := s.Exec(node, "ip -br link show dev eth0")
	if err != nil {
		s.T().Fatal(err)
	}
	return s.Match(out, `(([0-9a-f]{2}:){5}[0-9a-f]{2})`)
}

// failover returns how long after one node knows that another is dead a
// client gets an answer again.
func failover(s *scenario.Scenario, witness, victim string, client *scenario.Workload, url string) time.Duration {
	s.T().Helper()
	c := s.Lab.Node(2).Client()
	defer c.Close()
	var died time.Time
	s.Eventually(witness+" knows that "+victim+" is dead", 30*time.Second, func() error {
		st, err := c.Status(s.T().Context())
		if err != nil {
			return err
		}
		for _, p := range st.Peers {
			if p.Name == victim && p.State == "dead" {
				died = time.Now()
				return nil
			}
		}
		return errors.New("it does not yet")
	})
	s.Eventually("the address answers again", scenarioTimeout, func() error {
		out, err := client.Exec("curl -sS -m 0.2 " + url)
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	return time.Since(died)
}

// takeovers counts how often a node has begun to announce an address.
func takeovers(s *scenario.Scenario, node string) int {
	s.T().Helper()
	n, err := s.Lab.Nodes()
	if err != nil {
		s.T().Fatal(err)
	}
	for _, x := range n {
		if x.Name == node {
			b, err := os.ReadFile(x.Log())
			if err != nil {
				s.T().Fatal(err)
			}
			return strings.Count(string(b), "now=announced")
		}
	}
	s.T().Fatalf("no node %s", node)
	return 0
}

// quiet ends a watch and fails the test if it has missed an answer.
func quiet(s *scenario.Scenario, watch *scenario.Process) {
	s.T().Helper()
	s.Reject(s.Show(watch), `no answer`)
	watch.Stop()
}
