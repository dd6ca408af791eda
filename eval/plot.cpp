// Axes with round ticks, polylines, a legend.
#include "eval/plot.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>

namespace {

constexpr double kWidth = 720, kHeight = 300, kLeft = 64, kRight = 16, kTop = 34, kBottom = 40;
constexpr size_t kMaxPoints = 600;

struct Range {
    double low = std::numeric_limits<double>::infinity(), high = -std::numeric_limits<double>::infinity();
    void include(double v) {
        if (!std::isfinite(v)) return;
        low = std::min(low, v);
        high = std::max(high, v);
    }
    void widen() {
        if (low > high) low = 0, high = 1;
        // Nearly equal is equal: its ticks would have one and the same label, or fall between two doubles.
        const double size = std::max(std::abs(low), std::abs(high));
        if (high - low <= 1e-9 * size || high - low < 1e-300) {
            const double margin = std::max(1e-12, size * 0.5);
            low -= margin, high += margin;
        }
    }
};

// 1, 2 or 5 times a power of ten, so that about `count` steps cover the range.
double round_step(double span, int count) {
    const double raw = span / count, power = std::pow(10.0, std::floor(std::log10(raw)));
    for (double factor : {1.0, 2.0, 5.0}) {
        if (raw <= factor * power) return factor * power;
    }
    return 10 * power;
}

// The multiples of `step` in the range, counted in integers: a sum of doubles may stand still.
template <class OnTick>
void for_each_tick(const Range& range, double step, OnTick on_tick) {
    for (auto i = static_cast<int64_t>(std::ceil(range.low / step));
         static_cast<double>(i) * step <= range.high; ++i)
        on_tick(static_cast<double>(i) * step);
}

std::string number(double v) {
    char text[32];
    std::snprintf(text, sizeof text, "%.1f", v);
    return text;
}

}  // namespace

std::string short_number(double value) {
    char text[32];
    const double size = std::abs(value);
    if (size >= 1e6) {
        std::snprintf(text, sizeof text, "%.4gM", value / 1e6);
    } else if (size >= 1e4) {
        std::snprintf(text, sizeof text, "%.4gk", value / 1e3);
    } else {
        std::snprintf(text, sizeof text, "%.4g", value);
    }
    return text;
}

std::string html_escape(const std::string& text) {
    std::string out;
    for (char c : text) {
        switch (c) {
            case '&': out += "&amp;"; break;
            case '<': out += "&lt;"; break;
            case '>': out += "&gt;"; break;
            case '"': out += "&quot;"; break;
            default: out += c;
        }
    }
    return out;
}

std::string svg_plot(const std::string& title, const std::string& x_label,
                     const std::vector<PlotSeries>& series, const std::vector<PlotLine>& lines) {
    Range x_range, y_range;
    for (const PlotSeries& s : series) {
        for (double x : s.x) x_range.include(x);
        for (double y : s.y) y_range.include(y);
    }
    for (const PlotLine& line : lines) y_range.include(line.y);
    x_range.widen();
    y_range.widen();
    const double y_pad = 0.04 * (y_range.high - y_range.low);
    y_range.low -= y_range.low >= 0 && y_range.low < y_pad ? y_range.low : y_pad;
    y_range.high += y_pad;
    const auto px = [&](double x) {
        return kLeft + (x - x_range.low) / (x_range.high - x_range.low) * (kWidth - kLeft - kRight);
    };
    const auto py = [&](double y) {
        return kHeight - kBottom -
               (y - y_range.low) / (y_range.high - y_range.low) * (kHeight - kTop - kBottom);
    };

    std::string svg = "<svg viewBox=\"0 0 " + number(kWidth) + " " + number(kHeight) +
                      "\" role=\"img\" aria-label=\"" + html_escape(title) + "\"><text class=\"title\" x=\"" +
                      number(kLeft) + "\" y=\"18\">" + html_escape(title) + "</text>\n";
    const double y_step = round_step(y_range.high - y_range.low, 5),
                 x_step = round_step(x_range.high - x_range.low, 6);
    for_each_tick(y_range, y_step, [&](double y) {
        svg += "<line class=\"grid\" x1=\"" + number(kLeft) + "\" x2=\"" + number(kWidth - kRight) +
               "\" y1=\"" + number(py(y)) + "\" y2=\"" + number(py(y)) +
               "\"/><text class=\"tick\" text-anchor=\"end\" x=\"" + number(kLeft - 6) + "\" y=\"" +
               number(py(y) + 4) + "\">" + short_number(y) + "</text>\n";
    });
    for_each_tick(x_range, x_step, [&](double x) {
        svg += "<text class=\"tick\" text-anchor=\"middle\" x=\"" + number(px(x)) + "\" y=\"" +
               number(kHeight - kBottom + 16) + "\">" + short_number(x) + "</text>\n";
    });
    svg += "<text class=\"tick\" text-anchor=\"middle\" x=\"" + number((kLeft + kWidth - kRight) / 2) +
           "\" y=\"" + number(kHeight - 6) + "\">" + html_escape(x_label) + "</text>\n";

    for (const PlotLine& line : lines) {
        svg += "<line class=\"yardstick\" x1=\"" + number(kLeft) + "\" x2=\"" + number(kWidth - kRight) +
               "\" y1=\"" + number(py(line.y)) + "\" y2=\"" + number(py(line.y)) +
               "\"/><text class=\"tick\" text-anchor=\"end\" x=\"" + number(kWidth - kRight) + "\" y=\"" +
               number(py(line.y) - 4) + "\">" + html_escape(line.name) + " " + short_number(line.y) +
               "</text>\n";
    }
    double legend_x = kWidth - kRight;
    for (size_t k = series.size(); k-- > 0;) {
        const PlotSeries& s = series[k];
        const std::string color = " class=\"s" + std::to_string(k % 4) + "\"";
        const size_t stride = std::max<size_t>(1, s.x.size() / kMaxPoints);
        std::string points, dots;
        for (size_t i = 0; i < s.x.size(); ++i) {
            const bool last = i + 1 == s.x.size();
            if ((i % stride != 0 && !last) || !std::isfinite(s.y[i]) || !std::isfinite(s.x[i])) continue;
            points += number(px(s.x[i])) + "," + number(py(s.y[i])) + " ";
            if (s.markers) {
                dots += "<circle" + color + " r=\"3\" cx=\"" + number(px(s.x[i])) + "\" cy=\"" +
                        number(py(s.y[i])) + "\"><title>" + short_number(s.x[i]) + ": " +
                        short_number(s.y[i]) + "</title></circle>";
            }
        }
        svg += "<polyline" + color + " points=\"" + points + "\"/>" + dots;
        if (series.size() > 1) {
            legend_x -= 9.0 * static_cast<double>(s.name.size()) + 14;
            svg += "<text" + color + " x=\"" + number(legend_x) + "\" y=\"18\">&#9632; " +
                   html_escape(s.name) + "</text>";
        }
        svg += "\n";
    }
    return svg + "</svg>\n";
}
