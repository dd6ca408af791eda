// A line plot as an inline SVG string: no scripts, no fonts, readable in print. Long series are thinned to
// the width.
#pragma once
#include <string>
#include <vector>

struct PlotSeries {
    std::string name;
    std::vector<double> x, y;  // equal lengths; non-finite points are left out
    bool markers = false;      // few points: dots on the line
};
struct PlotLine {  // a horizontal yardstick across the plot
    std::string name;
    double y = 0;
};

std::string svg_plot(const std::string& title, const std::string& x_label,
                     const std::vector<PlotSeries>& series, const std::vector<PlotLine>& lines = {});
std::string html_escape(const std::string& text);
std::string short_number(double value);  // axis labels: "0.002", "12.5k"
