package chaos

import (
	"os"
	"strings"
	"testing"

	"nodenet/dns/plugin/plugintest"
)

func TestServe(t *testing.T) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	p := plugintest.New(t, ".", "chaos v1 a b", Parse)
	for question, want := range map[string]string{
		"version.bind TXT CH":   "NOERROR aa\nversion.bind. 0 CH TXT \"v1\"\n",
		"Version.Server TXT CH": "NOERROR aa\nversion.server. 0 CH TXT \"v1\"\n",
		"authors.bind TXT CH":   "NOERROR aa\nauthors.bind. 0 CH TXT \"a\"\nauthors.bind. 0 CH TXT \"b\"\n",
		"hostname.bind TXT CH":  "NOERROR aa\nhostname.bind. 0 CH TXT \"" + host + "\"\n",
		"id.server TXT CH":      "NOERROR aa\nid.server. 0 CH TXT \"" + host + "\"\n",
		"other.bind TXT CH":     "none\n",
		"version.bind TXT IN":   "none\n",
	} {
		if got := plugintest.Serve(t, p, plugintest.Query(t, question), nil); got != want {
			t.Errorf("%s: %q, want %q", question, got, want)
		}
	}
	if errs := plugintest.Errors(t, "chaos "+strings.Repeat("x", 256), map[string]plugintest.ParseFunc{"chaos": Parse}); len(errs) != 1 {
		t.Errorf("a long version: errors %q", errs)
	}
}
