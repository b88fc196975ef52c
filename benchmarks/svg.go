package main

import (
	"bytes"
	"fmt"
	"math"
)

// Sizes of a plot, in pixels.
const (
	plotWidth, plotHeight = 720, 360
	plotLeft, plotRight   = 80, 200
	plotTop, plotBottom   = 40, 50
	plotAreaWidth         = plotWidth - plotLeft - plotRight
	plotAreaHeight        = plotHeight - plotTop - plotBottom
)

var plotColours = []string{"#0b7285", "#c92a2a", "#5c940d", "#862e9c"}

// svg draws the curve: both axes are logarithmic, so that linear growth is a straight line at 45
// degrees of the scales.
func (c *curve) svg(ys [][]float64) []byte {
	low, high := math.Inf(1), math.Inf(-1)
	for _, line := range ys {
		for _, y := range line {
			low, high = min(low, y), max(high, y)
		}
	}
	low, high = math.Pow(10, math.Floor(math.Log10(max(low, 1e-3)))), math.Pow(10, math.Ceil(math.Log10(max(high, 1e-3))))
	if low == high {
		high *= 10
	}
	first, last := float64(c.xs[0]), float64(c.xs[len(c.xs)-1])
	at := func(x, y float64) (px, py float64) {
		px = plotLeft + plotAreaWidth*math.Log(x/first)/math.Log(last/first)
		py = plotTop + plotAreaHeight*(1-math.Log(max(y, low)/low)/math.Log(high/low))
		return px, py
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, plotHeight)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%d" y="20" font-size="15">%s</text>`+"\n", plotLeft, c.title)
	for y := low; y <= high*1.001; y *= 10 {
		_, py := at(first, y)
		fmt.Fprintf(&b, `<path d="M%d %.1fH%d" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%s</text>`+"\n", plotLeft, py, plotLeft+plotAreaWidth, plotLeft-8, py+4, short(y))
	}
	for _, x := range c.xs {
		px, _ := at(float64(x), low)
		fmt.Fprintf(&b, `<path d="M%.1f %dV%d" stroke="#eee"/><text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", px, plotTop, plotTop+plotAreaHeight, px, plotTop+plotAreaHeight+18, short(float64(x)))
	}
	fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", plotLeft+plotAreaWidth/2, plotHeight-10, c.xLabel)
	fmt.Fprintf(&b, `<text x="16" y="%d" text-anchor="middle" transform="rotate(-90 16 %d)">%s</text>`+"\n", plotTop+plotAreaHeight/2, plotTop+plotAreaHeight/2, c.yLabel)
	for i, line := range ys {
		colour := plotColours[i%len(plotColours)]
		var points bytes.Buffer
		for j, y := range line {
			px, py := at(float64(c.xs[j]), y)
			fmt.Fprintf(&points, "%.1f,%.1f ", px, py)
			fmt.Fprintf(&b, `<circle cx="%.1f" cy="%.1f" r="3" fill="%s"/>`+"\n", px, py, colour)
		}
		fmt.Fprintf(&b, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", points.Bytes(), colour)
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", plotLeft+plotAreaWidth+12, plotTop+14+18*i, colour, c.lines[i].name)
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}

// short is a number with three digits and k or M.
func short(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.3gM", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.3gk", v/1e3)
	default:
		return fmt.Sprintf("%.4g", v)
	}
}
