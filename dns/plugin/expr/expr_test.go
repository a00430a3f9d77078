package expr

import (
	"net/netip"
	"testing"

	"nodenet/dns/plugin/plugintest"
)

func TestCondition(t *testing.T) {
	tests := []struct {
		src  string
		want bool
	}{
		{`true`, true},
		{`type() == 'A'`, true},
		{`type() in ['AAAA', 'A']`, true},
		{`type() not in ['AAAA', "A"]`, false},
		{`name() == 'example.com.' || client_ip() == '1.2.3.4'`, false},
		{`(type() == 'A' && name() == 'abc.x.example.com.') || client_ip() == '1.2.3.4'`, true},
		{`incidr(client_ip(), '127.0.0.0/24')`, false},
		{`incidr(client_ip(), '192.0.2.0/24') and not do()`, true},
		{`name() matches '^abc\\..*\\.example\\.com\\.$'`, true},
		{`name() startsWith 'abc' && !(name() endsWith 'org.')`, true},
		{`name() contains 'zzz' or bufsize() >= 512`, true},
		{`bufsize() > 512`, false},
		{`size() < 20`, false},
		{`proto() == 'udp' && port() == '40000' && server_port() == '53'`, true},
		{`class() != 'IN'`, false},
		{`!true || !false && true`, true},
	}
	for _, tt := range tests {
		c, err := Parse(tt.src)
		if err != nil {
			t.Errorf("%s: %v", tt.src, err)
			continue
		}
		q := plugintest.Query(t, "abc.x.example.com A")
		q.Local = netip.MustParseAddrPort("192.0.2.53:53")
		if got := c(q); got != tt.want {
			t.Errorf("%s is %v", tt.src, got)
		}
	}
	q := plugintest.Query(t, "a A")
	q.Client = netip.MustParseAddrPort("[2001:db8::7]:5")
	c, err := Parse(`client_ip() == '[2001:db8::7]' && incidr(client_ip(), '2001:0DB8::/32')`)
	if err != nil || !c(q) {
		t.Errorf("IPv6 client: %v", err)
	}
}

func TestErrors(t *testing.T) {
	for src, want := range map[string]string{
		``:                            "the expression ends too early",
		`name()`:                      "the expression is text, not a condition",
		`name() == 5`:                 "== does not compare text with a number",
		`name() && true`:              "&& needs conditions on both sides",
		`!5`:                          "! needs a condition, not a number",
		`size() in 5`:                 "in does not compare a number with a number",
		`name() matches '('`:          "error parsing regexp: missing closing ): `(`",
		`name() matches name()`:       "matches needs an expression in quotes",
		`foo() == 'a'`:                "function foo is not known",
		`name('a') == 'a'`:            "name takes 0 arguments",
		`incidr(5, '10.0.0.0/8')`:     "incidr: argument 1 is a number, not text",
		`incidr(client_ip(), '10/8')`: `incidr: "10/8" is not a prefix`,
		`name() == 'a`:                "'a has no closing quote",
		`(true`:                       "a closing parenthesis is missing",
		`type() in ['A' 'B']`:         "a comma or ] is missing",
		`type == 'A'`:                 `"type" is not known, text goes in quotes`,
		`true true`:                   `unexpected "true"`,
		`true ; false`:                `unexpected ";"`,
	} {
		if _, err := Parse(src); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", src, err, want)
		}
	}
}

// FuzzParse: no expression panics, neither when it is read nor evaluated.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`type() in ['A', 'B'] && !(size() < 5)`, `incidr(client_ip(), '10.0.0.0/8') or name() matches 'a'`, `((((`, `[[1], 2] == 3`, `not not true`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		if c, err := Parse(src); err == nil {
			c(plugintest.Query(t, "a.example A"))
		}
	})
}
