package main

import (
	"maps"
	"math"
	"slices"
)

// histogram counts times in client.c's buckets, by index.
type histogram map[int]int

// precision is client.c's BITS: 128 buckets for each power of two of microseconds.
const precision = 7

// microseconds is the middle of a bucket.
func microseconds(index int) float64 {
	if index < 2<<precision {
		return float64(index)
	}
	shift := index>>precision - 1
	least, width := math.Ldexp(float64(index-shift<<precision), shift), math.Ldexp(1, shift)
	return least + (width-1)/2
}

func (h histogram) merge(other histogram) {
	for index, n := range other {
		h[index] += n
	}
}

func (h histogram) count() (n int) {
	for _, in := range h {
		n += in
	}
	return n
}

// percentile is the time, in milliseconds, within which p of 1 were; NaN if there are none.
func (h histogram) percentile(p float64) float64 {
	rank := max(1, int(math.Ceil(p*float64(h.count()))))
	for _, index := range slices.Sorted(maps.Keys(h)) {
		if rank -= h[index]; rank <= 0 {
			return microseconds(index) / 1e3
		}
	}
	return math.NaN()
}
