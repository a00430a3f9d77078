package policy

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

const nodefile6 = `network pods 10.244.0.0/16 fd00:10:244::/112 {
    block 24
    pin 10.244.{$NODENET_INDEX}.0/24
    masquerade
}
network back 10.245.0.0/16 fd00:10:245::/112 {
    block 24
    pin 10.245.{$NODENET_INDEX}.0/24
    masquerade
}
services 10.96.0.0/12 fd00:10:96::/108
policy closed.shop {
    select tier=closed
    deny ingress
}
`

// TestPolicy6: policies and the isolation of networks hold over IPv6 as they do
// over IPv4, on one bridge, across two nodes and through services.
func TestPolicy6(t *testing.T) {
	b := bed{scenario.Up(t, lab.Options{Nodes: 2, Nodefile: nodefile6})}
	db := b.Workload(1, "db", "--namespace shop --label app=db --ip 10.244.1.2")
	web := b.Workload(1, "web", "--namespace shop --label app=web")
	far := b.Workload(2, "far", "--namespace shop --label app=web")
	other := b.Workload(2, "other", "--namespace lab --label app=web")
	closed := b.Workload(2, "closed", "--namespace shop --label tier=closed --ip fd00:10:244::2aa")
	back := b.Workload(2, "back", "--network back --ip 10.245.2.2")
	db.Serve(3306)
	closed.Serve(80)
	back.Serve(80)
	b.Run("node1", "nodectl service add db.shop --vip fd00:10:96::14 --families ipv6 --port 3306 --select app=db")
	const direct, vip, shut, apart = "[fd00:10:244::102]:3306", "[fd00:10:96::14]:3306", "[fd00:10:244::2aa]:80", "[fd00:10:245::202]:80"
	b.want("everybody reaches the database, and nobody what is closed or of another network",
		get{web, direct, true}, get{far, direct, true}, get{other, direct, true}, get{web, vip, true}, get{far, vip, true}, get{other, vip, true},
		get{web, shut, false}, get{far, shut, false}, get{web, apart, false}, get{far, apart, false}, get{back, direct, false}, get{back, vip, false})
	b.Run("node2", "curl -sS --max-time 2 http://"+shut+"/") // its node's own checks

	b.add("node2", `policy db.shop {
    select app=db
    ingress {
        from labels app=web
        port 3306
    }
}`)
	b.want("only the shop's web does", get{web, direct, true}, get{far, direct, true}, get{other, direct, false},
		get{web, vip, true}, get{far, vip, true}, get{other, vip, false})
	b.Want(b.Run("node1", "nodectl policy test --from far.shop --to [fd00:10:96::14]:3306"), `fd00:10:244::102.* port 3306/tcp +allowed$`, `kernel +node2 lets it pass`, `kernel +node1 lets it pass`)
	b.Want(b.Fail("node2", "nodectl policy test --from other.lab --to [fd00:10:244::102]:3306"), `denied$`, `kernel +node1 drops it in chain ingress`)

	b.add("node1", `policy quiet.shop {
    select app=web
    egress {
        to prefix fd00:10:244::200/120
    }
}`)
	b.want("the web may go out to one node's IPv6 addresses only", get{web, direct, false}, get{web, vip, false}, get{far, direct, false}, get{web, "10.244.1.2:3306", false})
	b.Want(b.Fail("node1", "nodectl policy test --from far.shop --to [fd00:10:244::102]:3306"), `egress +denied: isolated by quiet\.shop`, `kernel +node2 drops it in chain egress`)

	b.Run("node1", "nodectl policy rm quiet.shop")
	b.Run("node1", "nodectl policy rm db.shop")
	for i := range 2 {
		b.reload(i+1, "network back 10.245.0.0/16 fd00:10:245::/112 {", "network back 10.245.0.0/16 fd00:10:245::/112 {\n    peer pods")
	}
	b.want("all as it was, and peers reach one another", get{web, direct, true}, get{far, vip, true}, get{other, direct, true}, get{web, shut, false},
		get{web, apart, true}, get{far, apart, true}, get{back, direct, true}, get{back, vip, true})
}
