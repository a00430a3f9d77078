package log

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	wire "github.com/miekg/dns"

	"nodenet/dns/plugin"
)

// entry is what a line is made of.
type entry struct {
	q     *plugin.Query
	m     *wire.Msg // nil: none
	rcode int
	class string
	took  time.Duration
}

// format is a line as literal text and placeholders in turn.
type format []part

type part struct {
	text string
	of   func(*entry) string // nil: the text
}

const (
	common   = `{remote}:{port} - {>id} "{type} {class} {name} {proto} {size} {>do} {>bufsize}" {rcode} {>rflags} {rsize} {duration}`
	combined = common + ` "{>opcode}"`
)

// parseFormat reads a format with the placeholders of CoreDNS.
func parseFormat(text string) (format, error) {
	text = strings.NewReplacer("{common}", common, "{combined}", combined).Replace(text)
	known := placeholders()
	var f format
	for text != "" {
		open := strings.IndexByte(text, '{')
		if open < 0 {
			return append(f, part{text: text}), nil
		}
		end := strings.IndexByte(text[open:], '}')
		if end < 0 {
			return nil, fmt.Errorf("format: %q has no closing brace", text[open:])
		}
		name := text[open+1 : open+end]
		of := known[name]
		if strings.HasPrefix(name, "/") && of == nil {
			of = func(*entry) string { return "-" } // a label that nothing here provides
		}
		if of == nil {
			return nil, fmt.Errorf("format: {%s} is not known", name)
		}
		if open > 0 {
			f = append(f, part{text: text[:open]})
		}
		f, text = append(f, part{of: of}), text[open+end+1:]
	}
	return f, nil
}

func (f format) render(e *entry) string {
	var b strings.Builder
	for _, p := range f {
		if p.of == nil {
			b.WriteString(p.text)
		} else {
			b.WriteString(p.of(e))
		}
	}
	return b.String()
}

func placeholders() map[string]func(*entry) string {
	bracketed := func(a netip.Addr) string {
		if a.Is6() {
			return "[" + a.String() + "]"
		}
		return a.String()
	}
	word := func(s string, code int) string {
		if s == "" {
			return strconv.Itoa(code)
		}
		return s
	}
	return map[string]func(*entry) string{
		"type":  func(e *entry) string { return wire.Type(e.q.Type).String() },
		"name":  func(e *entry) string { return e.q.Msg.Question[0].Name },
		"class": func(e *entry) string { return wire.Class(e.q.Class).String() },
		"proto": func(e *entry) string {
			switch {
			case e.q.Proto != "":
				return e.q.Proto
			case e.q.TCP:
				return "tcp"
			}
			return "udp"
		},
		"remote": func(e *entry) string { return bracketed(e.q.Client.Addr()) },
		"port":   func(e *entry) string { return strconv.Itoa(int(e.q.Client.Port())) },
		"local": func(e *entry) string {
			if !e.q.Local.IsValid() {
				return "-"
			}
			return bracketed(e.q.Local.Addr())
		},
		"size":     func(e *entry) string { return strconv.Itoa(e.q.Msg.Len()) },
		"duration": func(e *entry) string { return strconv.FormatFloat(e.took.Seconds(), 'f', -1, 64) + "s" },
		"rcode":    func(e *entry) string { return word(wire.RcodeToString[e.rcode], e.rcode) },
		"rsize": func(e *entry) string {
			if e.m == nil {
				return "0"
			}
			m := *e.m // the question is put in later
			m.Question = e.q.Msg.Question
			return strconv.Itoa(m.Len())
		},
		">rflags": func(e *entry) string { return flags(e) },
		">bufsize": func(e *entry) string {
			if o := e.q.OPT(); o != nil {
				return strconv.Itoa(int(o.UDPSize()))
			}
			return "512"
		},
		">do":        func(e *entry) string { return strconv.FormatBool(e.q.DO) },
		">id":        func(e *entry) string { return strconv.Itoa(int(e.q.Msg.Id)) },
		">opcode":    func(e *entry) string { return strconv.Itoa(e.q.Msg.Opcode) },
		"/log/class": func(e *entry) string { return e.class },
		"/log/type": func(e *entry) string {
			if e.rcode == wire.RcodeSuccess && e.class == "denial" {
				return "NODATA"
			}
			return word(wire.RcodeToString[e.rcode], e.rcode)
		},
	}
}

func flags(e *entry) string {
	if e.m == nil {
		return "-"
	}
	out := []string{"qr"}
	for _, f := range []struct {
		set  bool
		name string
	}{
		{e.m.Authoritative, "aa"}, {e.m.Truncated, "tc"}, {e.q.Msg.RecursionDesired, "rd"},
		{e.m.RecursionAvailable, "ra"}, {e.m.AuthenticatedData, "ad"}, {e.q.Msg.CheckingDisabled, "cd"},
	} {
		if f.set {
			out = append(out, f.name)
		}
	}
	return strings.Join(out, ",")
}
