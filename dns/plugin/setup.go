package plugin

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"nodenet/config"
)

// Setup turns directives of one server block into plugins and collects what
// is wrong with them. Nothing is read or opened meanwhile.
type Setup struct {
	Server config.Server
	Zones  Zones  // of the block's keys
	Root   string // directory of relative paths; empty: the working directory

	errs    []error
	notices []string
}

// Label names the block in messages.
func (s *Setup) Label() string {
	if len(s.Server.Keys) == 0 {
		return "."
	}
	return s.Server.Keys[0]
}

// Err returns everything that is wrong, each as `file:line: block: what, fix`.
func (s *Setup) Err() error { return errors.Join(s.errs...) }

// Errs returns the errors one by one.
func (s *Setup) Errs() []error { return s.errs }

// Notices returns what is accepted but has no effect or another name.
func (s *Setup) Notices() []string { return s.notices }

// Errorf reports an error at a place in the file.
func (s *Setup) Errorf(pos config.Pos, format string, args ...any) {
	s.errs = append(s.errs, fmt.Errorf("%s:%d: %s: %s", pos.File, pos.Line, s.Label(), fmt.Sprintf(format, args...)))
}

// Noticef tells something about a directive that is no error.
func (s *Setup) Noticef(d config.Directive, format string, args ...any) {
	s.notices = append(s.notices, fmt.Sprintf("%s:%d: %s", d.Pos.File, d.Pos.Line, fmt.Sprintf(format, args...)))
}

// Args checks the number of arguments; most -1 means any number.
func (s *Setup) Args(d config.Directive, least, most int, syntax string) bool {
	if len(d.Args) < least || most >= 0 && len(d.Args) > most {
		s.Errorf(d.Pos, "%s: wrong number of arguments, write `%s`", d.Name, syntax)
		return false
	}
	return true
}

// NoBlock refuses a nested block.
func (s *Setup) NoBlock(d config.Directive) {
	for _, o := range d.Block {
		s.Errorf(o.Pos, "%s: unknown option %q, remove it", d.Name, o.Name)
	}
}

// Unknown reports an option that a directive does not have.
func (s *Setup) Unknown(d, o config.Directive, known ...string) {
	s.Errorf(o.Pos, "%s: unknown option %q, %s", d.Name, o.Name, Suggest(o.Name, known))
}

// Duration reads a duration, or a number of seconds, of at least least.
func (s *Setup) Duration(d config.Directive, what, text string, least time.Duration) (time.Duration, bool) {
	v, err := time.ParseDuration(text)
	if err != nil {
		if n, nerr := strconv.Atoi(text); nerr == nil && n < 1<<31 {
			v, err = time.Duration(n)*time.Second, nil
		}
	}
	if err != nil || v < least {
		s.Errorf(d.Pos, "%s: %s %q is not a duration of at least %s, write it like 10s", d.Name, what, text, least)
		return 0, false
	}
	return v, true
}

// Number reads a number within bounds.
func (s *Setup) Number(d config.Directive, what, text string, least, most int) (int, bool) {
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		s.Errorf(d.Pos, "%s: %s %q is not a number from %d to %d", d.Name, what, text, least, most)
		return 0, false
	}
	return n, true
}

// maxRegexp bounds expressions: they come from files that people share.
const maxRegexp = 10000

// Regexp compiles a regular expression (RE2 syntax).
func (s *Setup) Regexp(d config.Directive, text string) *regexp.Regexp {
	if len(text) > maxRegexp {
		s.Errorf(d.Pos, "%s: the regular expression is longer than %d bytes, shorten it", d.Name, maxRegexp)
		return nil
	}
	re, err := regexp.Compile(text)
	if err != nil {
		s.Errorf(d.Pos, "%s: %q is not a regular expression: %v", d.Name, text, err)
		return nil
	}
	return re
}

// ZoneArgs reads zones; without any, the zones of the block.
func (s *Setup) ZoneArgs(d config.Directive, args []string) Zones {
	if len(args) == 0 {
		return s.Zones
	}
	var out Zones
	for _, a := range args {
		z, err := ParseZone(a)
		if err != nil {
			s.Errorf(d.Pos, "%s: %v", d.Name, err)
			continue
		}
		out = append(out, z...)
	}
	return out
}

// Fall reads `fallthrough [ZONE...]`.
func (s *Setup) Fall(d config.Directive) Fall {
	f := Fall{Set: true}
	if len(d.Args) > 0 {
		f.Zones = s.ZoneArgs(d, d.Args)
	}
	return f
}

// HostPort reads an HTTP listen address, `:8080` or `ADDR:PORT`.
func (s *Setup) HostPort(d config.Directive, text string) string {
	host, port, err := net.SplitHostPort(text)
	if err == nil && host != "" && host != "localhost" {
		_, err = netip.ParseAddr(host)
	}
	if err == nil {
		_, err = strconv.ParseUint(port, 10, 16)
	}
	if err != nil {
		s.Errorf(d.Pos, "%s: %q is not an address with a port, write it like :8080 or 127.0.0.1:8080", d.Name, text)
		return ""
	}
	return text
}

// Prefix reads a prefix or a single address.
func (s *Setup) Prefix(d config.Directive, text string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(text); err == nil {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		s.Errorf(d.Pos, "%s: %q is not an address or a prefix, write it like 192.0.2.0/24", d.Name, text)
		return netip.Prefix{}, false
	}
	return p.Masked(), true
}

// Path makes a path absolute that is relative to `root`.
func (s *Setup) Path(p string) string {
	if filepath.IsAbs(p) || s.Root == "" {
		return filepath.Clean(p)
	}
	return filepath.Join(s.Root, p)
}

// IsPrefix reports whether a word is a prefix such as 10.0.0.0/8.
func IsPrefix(s string) bool {
	_, err := netip.ParsePrefix(s)
	return err == nil
}

// Suggest names the known word that a mistyped one probably means.
func Suggest(word string, known []string) string {
	if n := config.Nearest(word, known); n != "" {
		return "did you mean " + n + "?"
	}
	return "known are " + strings.Join(known, ", ")
}
