package cni

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strings"

	"nodenet/api"
)

// Versions of the specification that the plugin speaks.
var versions = []string{"0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"}

const latest = "1.1.0"

// atLeast compares two known versions.
func atLeast(v, min string) bool { return slices.Index(versions, v) >= slices.Index(versions, min) }

// maxConf bounds a configuration; a prevResult of many interfaces is far below.
const maxConf = 1 << 20

// netConf is a network configuration as it comes from the runtime.
type netConf struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	Type          string          `json:"type"`
	Args          confArgs        `json:"args"`
	RuntimeConfig runtimeConfig   `json:"runtimeConfig"`
	DNS           dnsConf         `json:"dns"`
	IPAM          *ipamConf       `json:"ipam"`
	PrevResult    json.RawMessage `json:"prevResult"`
	Valid         []attachment    `json:"cni.dev/valid-attachments"` // GC
	ValidOld      []attachment    `json:"cni.dev/attachments"`       // GC, by its name before 1.1.0 was final

	// Of every type of ours: where the daemon is.
	Socket string `json:"socket"`

	// type nodenet
	Network   string            `json:"network"`
	Namespace string            `json:"namespace"`
	Labels    map[string]string `json:"labels"`

	// type bridge
	Bridge           string `json:"bridge"`
	IsGateway        bool   `json:"isGateway"`
	IsDefaultGateway bool   `json:"isDefaultGateway"`
	IPMasq           bool   `json:"ipMasq"`
	MTU              int    `json:"mtu"`

	// type bridge, of nodenet alone
	Peers []string `json:"peers"`

	keys map[string]json.RawMessage
}

type confArgs struct {
	CNI struct {
		IPs    []string   `json:"ips"`
		MAC    string     `json:"mac"`
		Labels []keyValue `json:"labels"`
	} `json:"cni"`
}

type keyValue struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// runtimeConfig holds the values of the capabilities that a configuration declares.
type runtimeConfig struct {
	PortMappings []portMapping   `json:"portMappings"`
	IPs          []string        `json:"ips"`
	MAC          string          `json:"mac"`
	Aliases      aliases         `json:"aliases"`
	IPRanges     [][]ipRange     `json:"ipRanges"`
	Bandwidth    json.RawMessage `json:"bandwidth"`
}

type portMapping struct {
	HostPort      int    `json:"hostPort"`
	ContainerPort int    `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP"`
}

// aliases is a list, as the conventions say, or lists by network, as Podman sends.
type aliases struct {
	list      []string
	byNetwork map[string][]string
}

func (a *aliases) UnmarshalJSON(b []byte) error {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("{")) {
		return json.Unmarshal(b, &a.byNetwork)
	}
	return json.Unmarshal(b, &a.list)
}

func (a *aliases) of(network string) []string {
	return append(slices.Clone(a.list), a.byNetwork[network]...)
}

type ipamConf struct {
	Type       string      `json:"type"`
	Ranges     [][]ipRange `json:"ranges"`
	Routes     []ipamRoute `json:"routes"`
	ResolvConf string      `json:"resolvConf"`
	ipRange
}

type ipRange struct {
	Subnet     string `json:"subnet"`
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Gateway    string `json:"gateway"`
}

type ipamRoute struct {
	Dst string `json:"dst"`
	GW  string `json:"gw,omitempty"`
}

type dnsConf struct {
	Nameservers []string `json:"nameservers,omitempty"`
	Domain      string   `json:"domain,omitempty"`
	Search      []string `json:"search,omitempty"`
	Options     []string `json:"options,omitempty"`
}

func (d dnsConf) empty() bool {
	return len(d.Nameservers) == 0 && d.Domain == "" && len(d.Search) == 0 && len(d.Options) == 0
}

func dnsOf(d api.DNSConfig) dnsConf {
	return dnsConf{Nameservers: d.Nameservers, Search: d.Search, Options: d.Options}
}

// readConf reads the configuration and checks what holds for every type.
// The version is returned also with an error, once it is known to be ours.
func readConf(r io.Reader) (c netConf, version string, err error) {
	b, err := io.ReadAll(io.LimitReader(r, maxConf+1))
	if err != nil {
		return c, "", faultf(codeIO, "read the network configuration from stdin: %v", err)
	}
	return parseConf(b)
}

func parseConf(b []byte) (c netConf, version string, err error) {
	if len(b) > maxConf {
		return c, "", faultf(codeDecode, "network configuration is longer than %d bytes", maxConf)
	}
	// The version first: whatever else is wrong is reported in it.
	var head struct {
		CNIVersion string `json:"cniVersion"`
	}
	if err := json.Unmarshal(b, &head); err != nil {
		return c, "", faultf(codeDecode, "network configuration: %v", err)
	}
	version = head.CNIVersion
	if version == "" {
		version = versions[0] // what a configuration without one means
	}
	if !slices.Contains(versions, version) {
		return c, "", &fault{code: codeVersion, msg: "CNI version " + quote(version) + " is not supported",
			details: "supported: " + strings.Join(versions, ", ")}
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, version, faultf(codeDecode, "network configuration: %v", err)
	}
	if err := json.Unmarshal(b, &c.keys); err != nil {
		return c, version, faultf(codeDecode, "network configuration: %v", err)
	}
	c.CNIVersion = version
	switch {
	case c.Name == "":
		return c, version, faultf(codeConfig, "network configuration has no name")
	case !identifier.MatchString(c.Name):
		return c, version, faultf(codeConfig, "network name %q: want letters, digits, '_', '.', '-', a letter or digit first", c.Name)
	}
	return c, version, nil
}

func quote(s string) string { b, _ := json.Marshal(s); return string(b) }

// Keys that a configuration of type nodenet may have. An unknown one is an
// error, because a misspelled key would silently do nothing.
var nodenetKeys = []string{"cniVersion", "cniVersions", "name", "type", "args", "capabilities", "runtimeConfig", "dns",
	"ipam", "prevResult", "socket", "network", "namespace", "labels", "disableCheck", "disableGC"}

// Keys of the reference bridge plugin that change what the container gets
// and that the daemon does not do.
var bridgeUnsupported = []string{"vlan", "vlanTrunk", "promiscMode", "macspoofchk", "enabledad", "portIsolation",
	"disableContainerInterface", "uplinkInterface"}

// checkKeys refuses keys that would be ignored although they mean something.
func (c *netConf) checkKeys() error {
	for _, k := range sortedKeys(c.keys) {
		if strings.ContainsAny(k, "./") {
			continue // a vendor's, such as cni.dev/…
		}
		var bad bool
		switch c.Type {
		case nameNodenet:
			bad = !slices.Contains(nodenetKeys, k)
		case nameBridge:
			bad = slices.Contains(bridgeUnsupported, k) && !isZero(c.keys[k])
		}
		if bad {
			return &fault{code: codeUnsupported, msg: "unsupported field " + quote(k) + " in a configuration of type " + quote(c.Type),
				details: "remove it; nodenet's own keys are network, namespace, labels and socket"}
		}
	}
	if b := c.RuntimeConfig.Bandwidth; !isZero(b) {
		var rates map[string]json.Number
		if json.Unmarshal(b, &rates) != nil || slices.ContainsFunc(sortedKeys(rates), func(k string) bool { return rates[k] != "0" }) {
			return &fault{code: codeUnsupported, msg: "unsupported field \"runtimeConfig.bandwidth\"",
				details: "chain the bandwidth plugin after this one"}
		}
	}
	return nil
}

// isZero reports whether a JSON value is absent or says nothing.
func isZero(b json.RawMessage) bool {
	switch string(bytes.TrimSpace(b)) {
	case "", "null", "false", "0", `""`, "[]", "{}":
		return true
	}
	return false
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
