package labs

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

// The table of labs names each page once, and no page that is not there.
func TestReadmeListsPages(t *testing.T) {
	const dir = "../../docs/labs"
	readme, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]int{}
	for _, m := range regexp.MustCompile(`\]\((\d\d-[^)]*\.md)\)`).FindAllStringSubmatch(string(readme), -1) {
		listed[m[1]]++
	}
	pages, err := filepath.Glob(filepath.Join(dir, "[0-9]*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		if n := listed[filepath.Base(p)]; n != 1 {
			t.Errorf("README.md links %s %d times, want once", filepath.Base(p), n)
		}
		delete(listed, filepath.Base(p))
	}
	for p := range listed {
		t.Errorf("README.md links %s, which is not there", p)
	}
}
