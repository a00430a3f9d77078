package config

import "strings"

// Nearest returns the word of known that word most likely stands for, or ""
// when none is near. Near is an edit distance (insertion, deletion,
// substitution, swap of neighbours) of about a third of the word, at most
// three. Of equally near words the first wins. Letter case does not count.
func Nearest(word string, known []string) string {
	const longest = 64 // no word that we know is longer; bounds the work on hostile input
	if word == "" || len(word) > longest {
		return ""
	}
	word = strings.ToLower(word)
	best, limit := "", min(3, max(1, (len(word)+1)/3))+1
	for _, k := range known {
		if len(k) > longest {
			continue
		}
		if d := distance(word, strings.ToLower(k)); d < limit && d < len(k) {
			best, limit = k, d
		}
	}
	return best
}

// distance is the Damerau-Levenshtein distance with each pair swapped at most
// once ("optimal string alignment"), over bytes.
func distance(a, b string) int {
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}

// meant words a suggestion for an error text: `, did you mean x?`, or the list
// of what is possible when nothing is near.
func meant(word string, known []string) string {
	if n := Nearest(word, known); n != "" {
		return ", did you mean " + n + "?"
	}
	return ", use one of: " + strings.Join(known, ", ")
}
