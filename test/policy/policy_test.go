package policy

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

const nodefile = `network pods 10.244.0.0/16 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    masquerade
}
network back 10.245.0.0/16 {
    block 24
    pin 10.245.{$NODENET_INDEX}.0/24
    masquerade
}
policy closed.shop {
    select tier=closed
    deny ingress
}
`

// TestPolicy: policies of a Nodefile and by command hold on both nodes, on one
// bridge and across nodes, for addresses and for services.
func TestPolicy(t *testing.T) {
	b := bed{scenario.Up(t, lab.Options{Nodes: 2, Nodefile: nodefile})}
	db := b.Workload(1, "db", "--namespace shop --label app=db --ip 10.244.1.2")
	web := b.Workload(1, "web", "--namespace shop --label app=web")
	far := b.Workload(2, "far", "--namespace shop --label app=web")
	other := b.Workload(1, "other", "--namespace lab --label app=web")
	closed := b.Workload(2, "closed", "--namespace shop --label tier=closed")
	db.Serve(3306)
	closed.Serve(80)
	b.Run("node1", "nodectl service add db.shop --vip 10.96.0.20 --port 3306 --select app=db")
	const addr, vip = "10.244.1.2:3306", "10.96.0.20:3306"
	b.want("everybody reaches the database", get{web, addr, true}, get{far, addr, true}, get{other, addr, true},
		get{web, vip, true}, get{far, vip, true}, get{other, vip, true})
	b.want("what a Nodefile closes is closed, but for its node's own checks", get{web, closed.Addr + ":80", false}, get{far, closed.Addr + ":80", false})
	b.Run("node2", "curl -sS --max-time 2 http://"+closed.Addr+":80/")

	b.add("node2", `policy db.shop {
    select app=db
    ingress {
        from labels app=web
        port 3306
    }
}`)
	b.want("only the shop's web does", get{web, addr, true}, get{far, addr, true}, get{other, addr, false},
		get{web, vip, true}, get{far, vip, true}, get{other, vip, false})
	b.want("the database reaches whom it wants", get{db, closed.Addr + ":80", false})
	b.Run("node1", "curl -sS --max-time 2 http://"+addr+"/") // its own node
	b.Want(b.Run("node1", "nodectl policy ls"), `^closed\.shop +tier=closed +1 +deny +- +nodefile`, `^db\.shop +app=db +1 +1 rule +- +command`)
	b.Want(b.Run("node1", "nodectl policy show db.shop"), `^policy db\.shop \{`, `^        from labels app=web$`, `^        port 3306/tcp$`)

	b.Want(b.Run("node1", "nodectl policy test --from web.shop --to db.shop:3306"), `allowed$`, `ingress +allowed: policy db\.shop, ingress 1`, `kernel +node1 lets it pass`)
	b.Want(b.Run("node1", "nodectl policy test --from far.shop --to 10.96.0.20:3306"), `^far\.shop .* db\.shop \(10\.244\.1\.2\) port 3306/tcp +allowed$`, `kernel +node2 lets it pass`, `kernel +node1 lets it pass`)
	b.Want(b.Fail("node2", "nodectl policy test --from other.lab --to db.shop:3306"), `denied$`, `ingress +denied: isolated by db\.shop, no rule allows it`, `kernel +node1 drops it in chain ingress`)
	b.Want(b.Fail("node1", "nodectl policy test --from web.shop --to db.shop:3307"), `denied$`, `kernel +node1 drops it in chain ingress-ports`)
	b.Reject(b.Fail("node1", "nodectl policy test --from web.shop --to closed.shop:80 -v"), `DIFFERS`)

	b.Want(b.Fail("node1", "nodectl policy rm closed.shop"), `declared in the Nodefile of node`)
	b.add("node1", `policy quiet.shop {
    select app=web
    egress {
        to prefix 10.244.2.0/24
    }
}`)
	b.want("the web may go out to one node's addresses only", get{web, addr, false}, get{web, vip, false}, get{far, addr, false}, get{other, addr, false})
	b.Want(b.Fail("node1", "nodectl policy test --from far.shop --to db.shop:3306"), `egress +denied: isolated by quiet\.shop`, `kernel +node2 drops it in chain egress`)

	b.Run("node1", "nodectl policy rm quiet.shop")
	b.Run("node1", "nodectl policy rm db.shop")
	b.want("all as it was", get{web, addr, true}, get{far, vip, true}, get{other, addr, true}, get{web, closed.Addr + ":80", false})
}

// TestNetworks: two networks do not reach one another, whatever the way, until
// one of them has the other as a peer; what is outside reaches both.
func TestNetworks(t *testing.T) {
	b := bed{scenario.Up(t, lab.Options{Nodes: 2, Nodefile: nodefile})}
	pod1, pod2 := b.Workload(1, "pod1", ""), b.Workload(2, "pod2", "")
	back1 := b.Workload(1, "back1", "--network back --label app=back --publish 8080:80")
	back2 := b.Workload(2, "back2", "--network back")
	back1.Serve(80)
	pod1.Serve(80)
	b.Run("node1", "nodectl service add back --vip 10.96.0.21 --port 80 --select app=back")
	const vip = "10.96.0.21:80"
	direct := back1.Addr + ":80"
	apart := []get{{back2, direct, true}, {back2, vip, true}, {pod2, pod1.Addr + ":80", true},
		{pod1, direct, false}, {pod2, direct, false}, {pod1, vip, false}, {pod2, vip, false}, {back1, pod1.Addr + ":80", false}, {back2, pod1.Addr + ":80", false}}
	b.want("a network reaches itself, and no other", apart...)
	for _, where := range []string{"node1", "node2", "outside"} {
		b.Run(where, "curl -sS --max-time 2 http://"+vip+"/")
	}
	b.Run("outside", "curl -sS --max-time 2 http://192.168.1.11:8080/")
	b.Run(scenario.Machine, "ip netns exec pod1 dig +short +time=2 +tries=2 back.default.svc.cluster.local @10.96.0.10")
	b.Want(b.Fail("node1", "nodectl policy test --from pod2.default --to back1.default:80"), `networks +denied: networks pods and back are not peers`, `kernel +node2 drops it in chain isolated`, `kernel +node1 drops it in chain isolated`)

	for i := range 2 {
		b.reload(i+1, "network back 10.245.0.0/16 {", "network back 10.245.0.0/16 {\n    peer pods")
	}
	for i := range apart {
		apart[i].ok = true
	}
	b.want("peers reach one another", apart...)
}
