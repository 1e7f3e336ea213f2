package main

import (
	"encoding/xml"
	"fmt"
	"strings"
)

// picture is panels of bars, two in a row.
type picture struct {
	title, about string
	panels       []panel
}

// panel shows one figure of several contestants.
type panel struct {
	title string
	bars  []bar
}

// bar is a figure over the rounds. Ours are drawn in the colour of rrd.
type bar struct {
	name   string
	ours   bool
	spread spread
}

// Sizes, in the picture's own units.
const (
	panelWidth = 400
	panelGap   = 24
	nameWidth  = 104
	textWidth  = 60
	barsWidth  = panelWidth - nameWidth - textWidth
	lineHeight = 22
	headHeight = 30
	topHeight  = 58
)

func (p picture) svg() string {
	var body strings.Builder
	y := topHeight
	for i := 0; i < len(p.panels); i += 2 {
		row := p.panels[i:min(i+2, len(p.panels))]
		rows := 0
		for j, pan := range row {
			pan.draw(&body, panelGap+j*(panelWidth+panelGap), y)
			rows = max(rows, len(pan.bars))
		}
		y += headHeight + rows*lineHeight + panelGap
	}
	return p.head(2*panelWidth+3*panelGap, y) + body.String() + "</svg>\n"
}

// head has colours for light and dark, told apart by those who see no red or green. The
// page is drawn, too: where the picture is shown, dark may not be what the reader's system prefers.
func (p picture) head(width, height int) string {
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-labelledby="title desc" font-family="system-ui, sans-serif" font-size="13">
<title id="title">%s</title>
<desc id="desc">%s</desc>
<style>
.page { fill: #ffffff } text { fill: #1f2328 } .soft { fill: #59636e } .ours { fill: #0969da } .theirs { fill: #8c959f } .range { stroke: #1f2328 }
@media (prefers-color-scheme: dark) { .page { fill: #0d1117 } text { fill: #f0f6fc } .soft { fill: #9198a1 } .ours { fill: #4493f8 } .theirs { fill: #6e7681 } .range { stroke: #f0f6fc } }
</style>
<rect width="%d" height="%d" rx="6" class="page"/>
<text x="%d" y="24" font-size="16" font-weight="600">%s</text>
<text x="%d" y="44" font-size="11" class="soft">%s</text>
`, width, height, width, height, escaped(p.title), escaped(p.description()),
		width, height, panelGap, escaped(p.title), panelGap, escaped(p.about))
}

// description tells all figures in words.
func (p picture) description() string {
	var s strings.Builder
	for _, pan := range p.panels {
		fmt.Fprintf(&s, "%s:", pan.title)
		for i, b := range pan.bars {
			if i > 0 {
				s.WriteByte(',')
			}
			fmt.Fprintf(&s, " %s %s", b.name, significant(b.spread.median))
		}
		s.WriteString(". ")
	}
	return s.String() + p.about
}

func (p panel) draw(s *strings.Builder, x, y int) {
	fmt.Fprintf(s, "<text x=\"%d\" y=\"%d\" font-weight=\"600\">%s</text>\n", x, y+14, escaped(p.title))
	most := 0.0
	for _, b := range p.bars {
		most = max(most, b.spread.most)
	}
	for i, b := range p.bars {
		b.draw(s, x, y+headHeight+i*lineHeight, most)
	}
}

// draw is a bar to the median, a line from the least to the most, and the median as text.
func (b bar) draw(s *strings.Builder, x, y int, most float64) {
	at := func(v float64) float64 {
		if most <= 0 {
			return float64(x + nameWidth)
		}
		return float64(x+nameWidth) + v/most*barsWidth
	}
	class := "theirs"
	if b.ours {
		class = "ours"
	}
	fmt.Fprintf(s, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", x+nameWidth-8, y+13, escaped(b.name))
	fmt.Fprintf(s, "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"16\" class=\"%s\"/>\n", x+nameWidth, y, at(b.spread.median)-float64(x+nameWidth), class)
	fmt.Fprintf(s, "<path d=\"M%.1f %dH%.1f\" class=\"range\"/>\n", at(b.spread.least), y+8, at(b.spread.most))
	fmt.Fprintf(s, "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>\n", x+panelWidth, y+13, significant(b.spread.median))
}

func escaped(text string) string {
	var s strings.Builder
	_ = xml.EscapeText(&s, []byte(text)) // a Builder takes everything
	return s.String()
}
