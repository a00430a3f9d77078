package rewrite

import (
	"regexp"
	"strconv"
	"strings"

	wire "github.com/miekg/dns"

	"nodenet/config"
	"nodenet/dns/plugin"
)

// matcher fits names. Names are lower-case and fully qualified.
type matcher struct {
	kind string // exact, prefix, suffix, substring, regex
	text string
	re   *regexp.Regexp
}

var kinds = map[string]bool{"exact": true, "prefix": true, "suffix": true, "substring": true, "regex": true}

// parseMatcher reads [KIND] TEXT and returns the words after it.
func parseMatcher(s *plugin.Setup, d config.Directive, words []string) (m matcher, rest []string, ok bool) {
	m.kind = "exact"
	if len(words) > 0 && kinds[words[0]] {
		m.kind, words = words[0], words[1:]
	}
	if len(words) == 0 {
		return m, nil, false
	}
	m.text = words[0]
	switch m.kind {
	case "regex":
		if m.re = s.Regexp(d, m.text); m.re == nil {
			return m, nil, false
		}
	default:
		m.text = m.normal(m.text)
	}
	return m, words[1:], true
}

// normal writes a text as it appears in names.
func (m *matcher) normal(text string) string {
	text = strings.ToLower(text)
	if (m.kind == "exact" || m.kind == "suffix") && !strings.HasSuffix(text, ".") {
		text += "."
	}
	return text
}

func (m *matcher) fits(name string) bool {
	switch m.kind {
	case "prefix":
		return strings.HasPrefix(name, m.text)
	case "suffix":
		return strings.HasSuffix(name, m.text)
	case "substring":
		return strings.Contains(name, m.text)
	case "regex":
		return m.re.MatchString(name)
	}
	return name == m.text
}

// replace makes another name of one that fits.
func (m *matcher) replace(name, to string) string {
	switch m.kind {
	case "prefix":
		return strings.ToLower(to) + strings.TrimPrefix(name, m.text)
	case "suffix":
		return strings.TrimSuffix(name, m.text) + m.normal(to)
	case "substring":
		return strings.Replace(name, m.text, strings.ToLower(to), 1)
	case "regex":
		return wire.CanonicalName(fill(to, m.re.FindStringSubmatch(name)))
	}
	return m.normal(to)
}

// fill puts the groups of a match in the places of {1}, {2} and so on.
func fill(text string, groups []string) string {
	for i := range groups {
		text = strings.ReplaceAll(text, "{"+strconv.Itoa(i)+"}", groups[i])
	}
	return text
}
