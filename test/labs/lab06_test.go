package labs

import (
	"testing"

	"nodenet/lab"
	"nodenet/test/scenario"
)

func TestLab06CNI(t *testing.T) {
	s := scenario.New(t)
	s.Page("docs/labs/06-cni.md", "Lab 6: the CNI plugin")
	s.Say(`
		Container runtimes call a program for each container: ADD, CHECK, DEL. nodectl is such a program. Under the names
		` + "`bridge` and `host-local`" + ` it takes the configuration of the reference plugins, so that files which are there
		already keep working; under its own name it attaches containers to the cluster's networks. ` + "`cnitool`" + `
		is the runtime here.`)
	s.Up(lab.Options{Name: "lab6", Nodes: 2})

	s.Say("## In the place of bridge and host-local\n\nOne configuration, as tutorials have it, word for word:")
	s.Shell(scenario.Machine, `mkdir bin net.d && ln -s "$(command -v nodectl)" bin/bridge && ln -s bridge bin/host-local`)
	s.File("net.d/10-mynet.conf", `{"cniVersion":"0.2.0","name":"mynet","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","subnet":"10.22.0.0/16","routes":[{"dst":"0.0.0.0/0"}]}}
`)
	s.Netns("red")
	s.Netns("blue")
	s.Say("ADD. The result is in version 0.2.0 too, as asked:")
	out := s.Shell("node1", cnitool+"add mynet /run/netns/red")
	s.Want(out, `"cniVersion": *"0\.2\.0"`, `"ip4"`, `"ip": *"10\.22\.\d+\.\d+/16"`, `"gateway": *"10\.22\.0\.1"`, `"dst": *"0\.0\.0\.0/0"`)
	s.Reject(out, `"ips"`, `"interfaces"`) // of later versions
	red := s.Match(out, `"ip": *"([0-9.]+)/16"`)
	out = s.Shell("node1", cnitool+"add mynet /run/netns/blue")
	blue := s.Match(out, `"ip": *"([0-9.]+)/16"`)

	s.Say("What the configuration promises: an address and a default route, a bridge `cni0` that is the gateway, a way to each other and, masqueraded, out.")
	s.Want(s.Run(scenario.Machine, "ip netns exec red ip -br address show dev eth0"), red+`/16`)
	s.Want(s.Run(scenario.Machine, "ip netns exec red ip route"), `^default via 10\.22\.0\.1 dev eth0`)
	s.Want(s.Run("node1", "ip -br address show dev cni0"), `10\.22\.0\.1/16`)
	s.Want(s.Run(scenario.Machine, "ip netns exec red ping -q -c 1 -W 2 "+blue), "1 received")
	s.Want(s.Run("node1", "ping -q -c 1 -W 2 "+red), "1 received")
	s.Want(s.Run(scenario.Machine, "ip netns exec red "+curl+"http://203.0.113.10/"), `^outside saw 192\.168\.1\.11$`)

	s.Say("DEL, twice: the second finds nothing and is no error, as the specification asks.")
	s.Shell("node1", cnitool+"del mynet /run/netns/red")
	s.Shell("node1", cnitool+"del mynet /run/netns/red")
	s.Shell("node1", cnitool+"del mynet /run/netns/blue")
	s.Reject(s.Run(scenario.Machine, "ip netns exec red ip -br link"), `eth0`)

	s.Say("CHECK came with version 0.4.0. With 1.0.0 in the file the result looks different, and CHECK finds out when somebody has changed the container.")
	s.Run(scenario.Machine, `sed -i 's/"0.2.0"/"1.0.0"/' net.d/10-mynet.conf`)
	out = s.Shell("node1", cnitool+"add mynet /run/netns/red")
	s.Want(out, `"cniVersion": *"1\.0\.0"`, `"ips"`, `"interfaces"`, `"address": *"10\.22\.\d+\.\d+/16"`, `"sandbox": *"/run/netns/red"`)
	s.Shell("node1", cnitool+"check mynet /run/netns/red")
	s.Run(scenario.Machine, "ip netns exec red ip address flush dev eth0")
	out, err := s.TryShell("node1", cnitool+"check mynet /run/netns/red")
	if err == nil {
		t.Fatalf("CHECK has not found that the address is gone:\n%s", out)
	}
	s.Want(out, `eth0 has not got the address `+s.Match(out, `(10\.22\.0\.\d+/16)`))
	s.Shell("node1", cnitool+"del mynet /run/netns/red")

	s.Say("`host-local` alone, as any other plugin would call it. It gives an address and touches no interface.")
	s.File("hostlocal.json", `{"cniVersion":"0.2.0","name":"other","type":"macvlan","ipam":{"type":"host-local","subnet":"10.23.0.0/16"}}
`)
	hostLocal := "CNI_CONTAINERID=c1 CNI_NETNS=/run/netns/red CNI_IFNAME=eth0 CNI_PATH=$PWD/bin bin/host-local <hostlocal.json"
	out = s.Shell("node1", "CNI_COMMAND=ADD "+hostLocal)
	s.Want(out, `"cniVersion": *"0\.2\.0"`, `"ip": *"10\.23\.0\.\d+/16"`, `"gateway": *"10\.23\.0\.1"`)
	s.Reject(s.Run(scenario.Machine, "ip netns exec red ip -br link"), `eth0`)
	s.Shell("node1", "CNI_COMMAND=DEL "+hostLocal)

	s.Say("## As itself\n\n`nodectl cni install` puts the plugin and a configuration where runtimes look; for this exercise, elsewhere.")
	s.Shell("node1", "nodectl cni install --bin-dir $PWD/bin --conf-dir $PWD/net.d")
	s.Run(scenario.Machine, "cat net.d/10-nodenet.conflist")
	out = s.Shell("node1", cnitool+"add nodenet /run/netns/blue")
	addr := s.Match(out, `"address": *"(10\.244\.[0-9.]+)/`)
	s.Shell("node1", cnitool+"check nodenet /run/netns/blue")
	s.Say("The container is a workload as any other: listed everywhere, reached from the other node.")
	until(s, "node2", "nodectl endpoints", addr)
	s.Want(s.Run("node2", "nodectl endpoints"), addr)
	web := s.Workload(2, "web", "")
	s.Want(web.Run("ping -q -c 1 -W 2 "+addr), "1 received")
	s.Shell("node1", cnitool+"del nodenet /run/netns/blue")
	s.Reject(s.Run("node1", "nodectl endpoints"), addr)
	web.Detach()
}

// cnitool finds plugins and configurations in the scenario's directory.
const cnitool = "CNI_PATH=$PWD/bin NETCONFPATH=$PWD/net.d cnitool "
