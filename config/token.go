package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/coredns/caddy/caddyfile"
)

// Bounds on what a Nodefile may expand to. Snippets that import one another
// twice each would otherwise grow without end, though no cycle exists.
const (
	maxFile    = 1 << 20 // bytes of one file
	maxTokens  = 200_000
	maxImports = 10_000
	maxDepth   = 64 // of imports within one another
)

// token is a word of a Nodefile, after imports and variables.
type token struct {
	text  string
	pos   Pos
	first bool // begins a line, or what counts as one: it follows a brace
}

// expander turns files into one list of tokens. caddyfile's own Parse does
// this too, but forgets the order of directives and takes an unset variable
// for an empty word, so only its lexer is used.
type expander struct {
	env      Env
	faults   *faults
	snippets map[string][]token
	out      []token
	depth    int // of braces in out
	imports  int
	skipped  int  // words of snippet definitions gone over
	splice   bool // the next token begins a line: it follows an import
	full     bool
}

// lex splits data into tokens. Quotes are gone afterwards, as in a Corefile:
// "{" in quotes is still a brace.
func lex(file string, data []byte) []token {
	var toks []token
	d := caddyfile.NewDispenser(file, bytes.NewReader(data))
	end, brace := 0, false
	for d.Next() {
		t := token{text: d.Val(), pos: Pos{File: file, Line: d.Line()}}
		t.first = brace || t.pos.Line > end
		end = t.pos.Line + strings.Count(t.text, "\n")
		brace = t.text == "{" || t.text == "}"
		toks = append(toks, t)
	}
	return emptyBodies(toks)
}

// emptyBodies splits a {} at the end of a line, which the lexer takes for a
// word, into its braces.
func emptyBodies(toks []token) []token {
	var out []token
	for i, t := range toks {
		last := i+1 == len(toks) || toks[i+1].first || toks[i+1].text == "}"
		if t.text == "{}" && last {
			out = append(out, token{"{", t.pos, t.first}, token{"}", t.pos, true})
		} else {
			out = append(out, t)
		}
	}
	return out
}

// read reads all of r. The lexer panics on a failing reader, so it only ever
// sees bytes in memory.
func read(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, err
	}
	return data, tooLarge(data)
}

func tooLarge(data []byte) error {
	if len(data) > maxFile {
		return fmt.Errorf("larger than %d bytes", maxFile)
	}
	return nil
}

// expand appends toks to the output. chain names what is being imported, from
// the outside in.
func (x *expander) expand(toks []token, chain []string) {
	for i := 0; i < len(toks) && !x.full; {
		t := toks[i]
		switch {
		case t.first && t.text == "import":
			end := i + 1
			for end < len(toks) && !toks[end].first && toks[end].text != "}" {
				end++
			}
			x.importLine(t, toks[i+1:end], chain)
			x.splice = true
			i = end
		case t.first && x.depth == 0 && isSnippet(t.text) && i+1 < len(toks) && toks[i+1].text == "{":
			end := matching(toks, i+1)
			if end < 0 {
				x.faults.add(t.pos, "snippet "+t.text, "not closed, add the missing }")
				return
			}
			if x.skipped += end - i; x.skipped > maxTokens {
				x.faults.add(t.pos, "", "more than %d words of snippets, import less", maxTokens)
				x.full = true
				return
			}
			name := t.text[1 : len(t.text)-1]
			if _, dup := x.snippets[name]; dup {
				x.faults.add(t.pos, "snippet "+t.text, "defined twice, rename one")
			} else {
				x.snippets[name] = toks[i+2 : end]
			}
			i = end + 1
		default:
			x.emit(t)
			i++
		}
	}
}

func (x *expander) emit(t token) {
	if len(x.out) >= maxTokens {
		x.faults.add(t.pos, "", "expands to more than %d words, import less", maxTokens)
		x.full = true
		return
	}
	switch t.text {
	case "{":
		x.depth++
	case "}":
		x.depth = max(0, x.depth-1)
	}
	t.text = x.substitute(t)
	t.first = t.first || x.splice
	x.splice = false
	x.out = append(x.out, t)
}

func isSnippet(s string) bool {
	return len(s) > 2 && s[0] == '(' && s[len(s)-1] == ')'
}

// matching returns the index of the brace that closes toks[open], or -1.
func matching(toks []token, open int) int {
	depth := 0
	for i := open; i < len(toks); i++ {
		switch toks[i].text {
		case "{":
			depth++
		case "}":
			if depth--; depth == 0 {
				return i
			}
		}
	}
	return -1
}

// importLine expands `import SNIPPET|FILE|GLOB`. Files are sought relative to
// the file that names them.
func (x *expander) importLine(t token, args []token, chain []string) {
	if len(args) != 1 {
		x.faults.add(t.pos, "import", "takes one snippet, file or pattern, not %d words", len(args))
		return
	}
	what := x.substitute(args[0])
	if what == "" {
		x.faults.add(t.pos, "import", "empty name")
		return
	}
	if body, ok := x.snippets[what]; ok {
		if link := "(" + what + ")"; x.enter(t, link, chain) {
			x.splice = true
			x.expand(body, append(slices.Clip(chain), link))
		}
		return
	}
	path := what
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(t.pos.File), path)
	}
	names := []string{path}
	if strings.ContainsAny(path, "*?[") {
		// Two wildcards can take for ever on a large tree, as caddyfile says too.
		if strings.Count(path, "*")+strings.Count(path, "?")+strings.Count(path, "[") > 1 {
			x.faults.add(t.pos, "import", "%s: more than one wildcard, use one * only", what)
			return
		}
		var err error
		if names, err = x.env.FS.Glob(path); err != nil {
			x.faults.add(t.pos, "import", "%s: %v", what, err)
			return
		}
		slices.Sort(names) // a pattern without a match imports nothing: an empty conf.d is fine
	}
	for _, name := range names {
		if !x.enter(t, name, chain) {
			continue
		}
		data, err := x.env.FS.ReadFile(name)
		if err == nil {
			err = tooLarge(data)
		}
		if err != nil {
			x.faults.add(t.pos, "import", "%s", x.unreadable(what, name, err))
			continue
		}
		x.faults.rank(name)
		x.splice = true
		x.expand(lex(name, data), append(slices.Clip(chain), name))
	}
}

func (x *expander) unreadable(what, name string, err error) string {
	if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Sprintf("%s: %v", what, err)
	}
	var known []string
	for s := range x.snippets {
		known = append(known, s)
	}
	slices.Sort(known)
	if n := Nearest(what, known); n != "" {
		return fmt.Sprintf("%s: no such snippet, did you mean %s?", what, n)
	}
	return fmt.Sprintf("%s: no such snippet (define it above its first use) and no file %s", what, name)
}

// enter reports whether link may be imported: it is not being imported
// already, and the bounds are kept.
func (x *expander) enter(t token, link string, chain []string) bool {
	x.imports++
	switch at := slices.Index(chain, link); {
	case at >= 0:
		x.faults.add(t.pos, "import", "cycle: %s, remove one of these imports", strings.Join(append(slices.Clip(chain[at:]), link), " → "))
	case len(chain) >= maxDepth:
		x.faults.add(t.pos, "import", "%d imports within one another, import less deeply", len(chain))
	case x.imports > maxImports:
		x.faults.add(t.pos, "import", "more than %d imports, import less", maxImports)
		x.full = true
	default:
		return true
	}
	return false
}

// substitute replaces {$NAME} and {%NAME%}. Values are not searched again.
func (x *expander) substitute(t token) string {
	if strings.Contains(t.text, "\x00") { // also keeps unset out of files
		x.faults.add(t.pos, "", "NUL byte in a word, the file is not text")
		return unset
	}
	if !strings.Contains(t.text, "{$") && !strings.Contains(t.text, "{%") {
		return t.text
	}
	s := x.references(t, t.text, "{%", "%}")
	s = x.references(t, s, "{$", "}")
	if reference(s, "{$", "}") >= 0 || reference(s, "{%", "%}") >= 0 {
		x.faults.add(t.pos, "", "%s: the variable's value is itself a reference, write the value", t.text)
		return unset
	}
	if _, ok := quote(s); !ok {
		x.faults.add(t.pos, "", "%s: the variable's value ends in a backslash, which quotes cannot hold", t.text)
		return unset
	}
	if s == "{" || s == "}" || s == "{}" || s == "import" {
		x.faults.add(t.pos, "", "%s: a variable cannot stand for %s, write it out", t.text, s)
		return unset
	}
	return s
}

func (x *expander) references(t token, s, open, shut string) string {
	var b strings.Builder
	for {
		i := reference(s, open, shut)
		if i < 0 {
			return b.String() + s
		}
		j := i + len(open) + strings.Index(s[i+len(open):], shut)
		name := s[i+len(open) : j]
		v, ok := x.env.lookup(name)
		if !ok {
			x.faults.add(t.pos, "", "variable %s is not set, set it in nodenet's environment or write the value", name)
			v = unset
		}
		b.WriteString(s[:i])
		b.WriteString(v)
		s = s[j+len(shut):]
	}
}

// unset stands for a variable without a value. That is reported where it is
// found; faults.add drops what follows from it, which quotes the word.
const unset = "\x00unset"

// reference returns where the first complete, named reference begins, or -1.
func reference(s, open, shut string) int {
	for from := 0; ; {
		i := strings.Index(s[from:], open)
		if i < 0 {
			return -1
		}
		i += from
		n := strings.Index(s[i+len(open):], shut)
		if n < 0 {
			return -1
		}
		if n > 0 {
			return i
		}
		from = i + len(open)
	}
}

// quote writes s as one token, in quotes where it needs them. It is false for
// the few strings that have no form: the lexer takes a backslash before a
// quote as an escape and knows no escaped backslash.
func quote(s string) (string, bool) {
	if s != "" && s[0] != '"' && !strings.ContainsRune(s, '#') && strings.IndexFunc(s, unicode.IsSpace) < 0 {
		return s, true
	}
	run := 0
	for i := 0; i <= len(s); i++ {
		switch {
		case i < len(s) && s[i] == '\\':
			run++
			continue
		case (i == len(s) || s[i] == '"') && run%2 == 1:
			return "", false
		}
		run = 0
	}
	return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`, true
}
