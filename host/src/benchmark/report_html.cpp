// SPDX-License-Identifier: Apache-2.0
// The report as one page: text, tables and drawings inside it, nothing fetched from anywhere.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <map>

#include "attend/benchmark.hpp"

namespace attend {
namespace {

std::string escaped(const std::string& text) {
    std::string out;
    for (const char c : text)
        out += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&quot;" : std::string(1, c);
    return out;
}

std::string number(double value, int digits = 4) {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "%.*g", digits, value);
    return text.data();
}

struct Series {
    std::string name, group;
    std::vector<std::pair<double, double>> points;
};

// Of the style sheet, which has them for light and for dark pages.
constexpr std::size_t num_colours = 10;
std::string colour(std::size_t at) { return "c" + std::to_string(at % num_colours); }

std::string text_at(double x, double y, const std::string& text, const char* anchor) {
    return "<text x=\"" + number(x, 6) + "\" y=\"" + number(y, 6) + "\" text-anchor=\"" + anchor + "\">" +
           escaped(text) + "</text>";
}
std::string box(double x, double y, double width, double height, const std::string& style) {
    return "<rect x=\"" + number(x, 6) + "\" y=\"" + number(y, 6) + "\" width=\"" + number(width, 6) + "\" height=\"" +
           number(height, 6) + "\" class=\"" + style + "\"/>";
}

// A value per name; `group` says which colour.
struct Named {
    std::string name, group;
    double x{0}, y{0};
};
std::vector<std::string> groups_of(const std::vector<Named>& values) {
    std::vector<std::string> groups;
    for (const Named& value : values)
        if (std::find(groups.begin(), groups.end(), value.group) == groups.end()) groups.push_back(value.group);
    return groups;
}
std::size_t group_index(const std::vector<std::string>& groups, const std::string& group) {
    return static_cast<std::size_t>(std::find(groups.begin(), groups.end(), group) - groups.begin());
}
std::string group_legend(const std::vector<std::string>& groups, double x, double y) {
    std::string svg;
    for (std::size_t at = 0; at < groups.size(); ++at, y += 16)
        svg += box(x, y, 10, 10, colour(at)) + text_at(x + 16, y + 9, groups[at], "start");
    return svg;
}

// One bar per name from zero, the shortest first.
std::string bars(const std::string& title, const std::string& unit, std::vector<Named> values) {
    std::erase_if(values, [](const Named& value) { return !(value.x > 0); });
    if (values.empty()) return "";
    const std::vector<std::string> groups = groups_of(values);
    std::stable_sort(values.begin(), values.end(), [](const Named& a, const Named& b) { return a.x < b.x; });
    constexpr double left = 215, right = 230, width = 860, step = 17, top = 30;
    const double longest = values.back().x, room = width - left - right - 60,
                 height = std::max(top + step * static_cast<double>(values.size()) + 32.0,
                                   top + 16.0 * static_cast<double>(groups.size()) + 20.0);
    std::string svg = "<svg viewBox=\"0 0 " + number(width) + " " + number(height) +
                      "\" role=\"img\"><text x=\"0\" y=\"16\" class=\"title\">" + escaped(title) + "</text>\n";
    double y = top;
    for (const Named& value : values) {
        const double length = std::max(room * value.x / longest, 1.0);
        svg += text_at(left - 8, y + 11, value.name, "end") +
               box(left, y + 1, length, step - 4, colour(group_index(groups, value.group))) +
               text_at(left + length + 5, y + 11, number(value.x, 3), "start") + "\n";
        y += step;
    }
    svg += "<line x1=\"" + number(left) + "\" y1=\"" + number(top - 4) + "\" x2=\"" + number(left) + "\" y2=\"" +
           number(y) + "\" class=\"axis\"/>" + text_at(left, y + 16, unit, "start");
    return svg + group_legend(groups, width - right + 60, top) + "</svg>\n";
}

// A drawing on two logarithmic axes. Values that are not above zero have no place on it.
std::string drawing(const std::string& title, const std::string& x_name, const std::string& y_name,
                    std::vector<Series> series, bool lines) {
    double x_low = INFINITY, x_high = 0, y_low = INFINITY, y_high = 0;
    for (Series& one : series) {
        std::erase_if(one.points, [](const auto& point) { return !(point.first > 0 && point.second > 0); });
        std::sort(one.points.begin(), one.points.end());
        for (const auto& [x, y] : one.points) {
            x_low = std::min(x_low, x), x_high = std::max(x_high, x);
            y_low = std::min(y_low, y), y_high = std::max(y_high, y);
        }
    }
    std::erase_if(series, [](const Series& one) { return one.points.empty(); });
    if (series.empty()) return "";
    x_low /= 1.15, x_high *= 1.15, y_low /= 1.3, y_high *= 1.3;
    constexpr double width = 860, left = 70, right = 290, top = 30, bottom = 45;
    const double height = std::max(360.0, top + 14.0 * static_cast<double>(series.size()) + 10.0);
    const auto place_x = [&](double x) {
        return left + (width - left - right) * std::log(x / x_low) / std::log(x_high / x_low);
    };
    const auto place_y = [&](double y) {
        return height - bottom - (height - top - bottom) * std::log(y / y_low) / std::log(y_high / y_low);
    };
    std::string svg = "<svg viewBox=\"0 0 " + number(width) + " " + number(height) +
                      "\" role=\"img\"><text x=\"0\" y=\"16\" class=\"title\">" + escaped(title) + "</text>\n";
    const auto line = [&](double x1, double y1, double x2, double y2, const char* style) {
        svg += "<line x1=\"" + number(x1, 6) + "\" y1=\"" + number(y1, 6) + "\" x2=\"" + number(x2, 6) + "\" y2=\"" +
               number(y2, 6) + "\" class=\"" + style + "\"/>";
    };
    const auto label = [&](double x, double y, const std::string& text, const char* anchor) {
        svg += text_at(x, y, text, anchor);
    };
    // Powers of two below, powers of ten at the side.
    const double x_step = std::log2(x_high / x_low) > 10 ? 10.0 : 2.0;
    for (double x = std::pow(x_step, std::ceil(std::log(x_low) / std::log(x_step) - 1e-9)); x <= x_high; x *= x_step) {
        line(place_x(x), top, place_x(x), height - bottom, "grid");
        label(place_x(x), height - bottom + 15, number(x, 5), "middle");
    }
    const double y_step = std::log10(y_high / y_low) < 1.0 ? 2.0 : 10.0;
    for (double y = std::pow(y_step, std::ceil(std::log(y_low) / std::log(y_step) - 1e-9)); y <= y_high; y *= y_step) {
        line(left, place_y(y), width - right, place_y(y), "grid");
        label(left - 6, place_y(y) + 4, number(y, 3), "end");
    }
    label(left + (width - left - right) / 2, height - 8, x_name, "middle");
    svg += "<text transform=\"translate(14," + number(height / 2) + ") rotate(-90)\" text-anchor=\"middle\">" +
           escaped(y_name) + "</text>";
    if (!lines) {
        std::vector<std::string> groups;
        for (const Series& one : series)
            if (std::find(groups.begin(), groups.end(), one.group) == groups.end()) groups.push_back(one.group);
        // Names stand beside their points, moved up or down where another stands already.
        std::vector<std::pair<double, double>> taken;
        for (const Series& one : series)
            for (const auto& [x, y] : one.points) {
                const double px = place_x(x), py = place_y(y);
                const auto group = std::find(groups.begin(), groups.end(), one.group) - groups.begin();
                svg += "<circle cx=\"" + number(px, 6) + "\" cy=\"" + number(py, 6) + "\" r=\"3.5\" class=\"" +
                       colour(static_cast<std::size_t>(group)) + "\"><title>" +
                       escaped(one.name + ": " + number(x) + ", " + number(y)) + "</title></circle>";
                for (const double shift : {0.0, 11.0, -11.0, 22.0, -22.0, 33.0, -33.0}) {
                    const bool free = std::none_of(taken.begin(), taken.end(), [&](const auto& other) {
                        return std::abs(other.first - px) < 130 && std::abs(other.second - py - shift) < 10;
                    });
                    if (!free) continue;
                    taken.emplace_back(px, py + shift);
                    label(px + 6, py + 4 + shift, one.name, "start");
                    break;
                }
            }
        return svg + group_legend(groups, width - right + 150, top) + "</svg>\n";
    }
    for (std::size_t at = 0; at < series.size(); ++at) {
        std::string path;
        for (const auto& [x, y] : series[at].points) {
            path += number(place_x(x), 6) + "," + number(place_y(y), 6) + " ";
            svg += "<circle cx=\"" + number(place_x(x), 6) + "\" cy=\"" + number(place_y(y), 6) +
                   "\" r=\"3\" class=\"" + colour(at) + "\"><title>" +
                   escaped(series[at].name + ": " + number(x) + ", " + number(y)) + "</title></circle>";
        }
        svg += "<polyline points=\"" + path + "\" class=\"line " + colour(at) + "\"/>";
        const double y = top + 14.0 * static_cast<double>(at);
        svg += box(width - right + 10, y, 9, 9, colour(at));
        label(width - right + 24, y + 9, series[at].name, "start");
    }
    return svg + "</svg>\n";
}

template <class X, class Y>
std::vector<Series> collect(const std::vector<BenchmarkRow>& rows, const std::string& category, X x, Y y) {
    std::map<std::string, Series> by_name;
    for (const BenchmarkRow& row : rows) {
        if (row.median_ms <= 0 || (!category.empty() && row.category != category)) continue;
        const std::string name =
            row.mechanism + (row.causal ? " causal" : "") + (row.precision == "fp32" ? "" : " " + row.precision);
        Series& series = by_name[name];
        series.name = name;
        series.group = row.category;
        series.points.emplace_back(x(row), y(row));
    }
    std::vector<Series> list;
    for (auto& [name, series] : by_name) list.push_back(std::move(series));
    return list;
}

std::string charts(const BenchmarkReport& report) {
    std::string text;
    std::vector<std::string> categories;
    std::uint32_t threads = 1;
    for (const BenchmarkRow& row : report.rows) {
        if (std::find(categories.begin(), categories.end(), row.category) == categories.end())
            categories.push_back(row.category);
        threads = std::max(threads, row.threads);
    }
    // One thread count and the most frequent head width, so that a line is a line.
    std::map<std::pair<std::int64_t, std::int64_t>, std::size_t> shapes;
    for (const BenchmarkRow& row : report.rows)
        if (row.threads == threads) ++shapes[{row.heads, row.dim}];
    std::pair<std::int64_t, std::int64_t> common{8, 64};
    std::size_t most = 0;
    for (const auto& [shape, count] : shapes)
        if (count > most) most = count, common = shape;
    std::vector<BenchmarkRow> same;
    for (const BenchmarkRow& row : report.rows)
        if ((row.threads == threads || row.category == "reference") && std::pair(row.heads, row.dim) == common &&
            row.q_len > 1)
            same.push_back(row);
    const auto length = [](const BenchmarkRow& row) { return static_cast<double>(row.kv_len); };
    const auto time = [](const BenchmarkRow& row) { return row.median_ms; };
    const auto megabytes = [](const BenchmarkRow& row) { return static_cast<double>(row.extra_bytes) / 1e6; };
    const auto error = [](const BenchmarkRow& row) { return row.error.value_or(0.0); };
    const bool together = report.suite == "scaling" || report.suite == "precision";
    const bool one_length = !same.empty() && std::all_of(same.begin(), same.end(), [&](const BenchmarkRow& row) {
        return row.kv_len == same.front().kv_len;
    });
    if (one_length) {
        const auto named = [&](auto value) {
            std::vector<Named> values;
            for (const Series& one : collect(same, "", value, value))
                values.push_back({one.name, one.group, one.points.front().first});
            return values;
        };
        const std::string at = " at " + std::to_string(same.front().kv_len) + " keys";
        text += bars("Time" + at, "ms, median", named(time));
        text += bars("Share of the machine's peak" + at, "% of the measured peak",
                     named([](const BenchmarkRow& row) { return 100.0 * row.share; }));
        text += bars("Extra memory" + at, "MB, growth of the first run", named(megabytes));
    } else if (together) {
        text += drawing("Time against length", "keys", "ms", collect(same, "", length, time), true);
        text += drawing("Extra memory against length", "keys", "MB", collect(same, "", length, megabytes), true);
    } else {
        for (const std::string& category : categories)
            if (!category.empty())
                text += drawing("Time against length: " + category, "keys", "ms", collect(same, category, length, time),
                                true);
        for (const std::string& category : categories)
            if (!category.empty())
                text += drawing("Extra memory against length: " + category, "keys", "MB",
                                collect(same, category, length, megabytes), true);
    }
    // Where mechanisms approximate; of several lengths the longest.
    std::vector<BenchmarkRow> inexact;
    for (const BenchmarkRow& row : same)
        if (row.error && std::all_of(same.begin(), same.end(), [&](const BenchmarkRow& other) {
                return !other.error || other.kv_len <= row.kv_len;
            }))
            inexact.push_back(row);
    if (!inexact.empty())
        text +=
            drawing("Distance from exact attention against time at " + std::to_string(inexact.front().kv_len) + " keys",
                    "ms", "relative error", collect(inexact, "", time, error), false);
    // Speed against threads, where a shape was measured with several counts.
    std::map<std::string, Series> scaling;
    for (const BenchmarkRow& row : report.rows) {
        if (row.median_ms <= 0 || row.flops <= 0) continue;
        Series& series = scaling[row.mechanism + " " + row.shape + (row.causal ? " causal" : "") + " " + row.precision];
        series.name = row.mechanism + " " + row.shape;
        if (std::none_of(series.points.begin(), series.points.end(),
                         [&](const auto& point) { return point.first == row.threads; }))
            series.points.emplace_back(row.threads, row.gflops);
    }
    std::vector<Series> several;
    for (auto& [key, series] : scaling)
        if (series.points.size() > 1 && several.size() < 10) several.push_back(std::move(series));
    text += drawing("Scaling with threads", "threads", "GFLOP/s", std::move(several), true);
    return text;
}

// Both colour schemes; the reader's system chooses.
constexpr std::string_view style_sheet =
    R"(<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"><style>
:root{--page:#fff;--text:#1a1a1a;--soft:#666;--rule:#ddd;--bad:#fdd;--good:#dfd;
--c0:#1f77b4;--c1:#d62728;--c2:#2ca02c;--c3:#9467bd;--c4:#e07000;--c5:#0f9fb0;--c6:#8c564b;--c7:#d858b0;--c8:#707070;--c9:#9a9a10}
@media(prefers-color-scheme:dark){:root{--page:#16181c;--text:#e6e6e6;--soft:#9aa0a6;--rule:#3a3f46;--bad:#5a2326;--good:#1f4a2a;
--c0:#6db3f2;--c1:#ff7b72;--c2:#6fd08c;--c3:#c3a6ff;--c4:#ffab5e;--c5:#56d4dd;--c6:#cfa18f;--c7:#ff9bd6;--c8:#b0b0b0;--c9:#d6d64f}}
body{font:14px system-ui,sans-serif;margin:2em;background:var(--page);color:var(--text)}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}.wide{overflow-x:auto}
td,th{padding:2px 8px;border-bottom:1px solid var(--rule);text-align:right;white-space:nowrap}td:first-child,th:first-child,td:last-child{text-align:left}
pre{overflow-x:auto}svg{width:100%;max-width:860px;display:block;margin:2em 0}svg text{font-size:11px;fill:var(--text)}
svg .title{font-size:14px;font-weight:bold}.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}svg .line{fill:none;stroke-width:1.5}
.missed,.wrong,.failed{background:var(--bad)}.aim{background:var(--good)}.not_applicable,.not_measured,.not_run{color:var(--soft)}
.c0{fill:var(--c0);stroke:var(--c0)}.c1{fill:var(--c1);stroke:var(--c1)}.c2{fill:var(--c2);stroke:var(--c2)}.c3{fill:var(--c3);stroke:var(--c3)}
.c4{fill:var(--c4);stroke:var(--c4)}.c5{fill:var(--c5);stroke:var(--c5)}.c6{fill:var(--c6);stroke:var(--c6)}.c7{fill:var(--c7);stroke:var(--c7)}
.c8{fill:var(--c8);stroke:var(--c8)}.c9{fill:var(--c9);stroke:var(--c9)}</style>)";

std::string table_row(const std::vector<std::string>& cells, const char* tag, const std::string& style = "") {
    std::string text = "<tr" + (style.empty() ? "" : " class=\"" + style + "\"") + ">";
    for (const std::string& cell : cells) text += "<" + std::string(tag) + ">" + escaped(cell) + "</" + tag + ">";
    return text + "</tr>\n";
}

}  // namespace

std::string BenchmarkReport::html() const {
    std::string page =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>attend benchmark: " + escaped(suite) +
        "</title>\n" + std::string(style_sheet) +
        "</head><body>\n"
        "<h1>attend benchmark: " +
        escaped(suite) + "</h1>\n<p>" + std::string(passed ? "passed" : "failed") + " in " + number(elapsed_s, 3) +
        " s</p>\n";
    page += charts(*this);
    const bool targets =
        std::any_of(rows.begin(), rows.end(), [](const BenchmarkRow& row) { return row.target.has_value(); });
    if (targets) {
        page += "<h2>Targets</h2>\n<div class=\"wide\"><table>" +
                table_row({"row", "measured", "must", "aim", "unit", "result", "median ms", "note"}, "th");
        for (const BenchmarkRow& row : rows)
            if (row.target)
                page += table_row({row.name, row.target->measured ? number(*row.target->measured) : "",
                                   number(row.target->must), number(row.target->aim), row.target->unit,
                                   row.target->result, row.median_ms > 0 ? number(row.median_ms) : "", row.note},
                                  "td", row.target->result);
        page += "</table></div>\n";
    }
    page += "<h2>Rows</h2>\n<div class=\"wide\"><table>" +
            table_row({"mechanism", "shape", "precision", "back end", "threads", "median ms", "quartiles", "GFLOP/s",
                       "share of peak", "workspace B", "peak resident MB", "check error", "checked against", "error",
                       "status", "note"},
                      "th");
    for (const BenchmarkRow& row : rows) {
        const bool timed = row.median_ms > 0;
        page += table_row(
            {row.mechanism, row.shape + (row.causal ? " causal" : ""), row.precision, row.backend,
             std::to_string(row.threads), timed ? number(row.median_ms) : "",
             timed ? number(row.lower_ms) + " - " + number(row.upper_ms) : "",
             timed && row.flops > 0 ? number(row.gflops) : "", row.peak > 0 ? number(100 * row.share, 3) + " %" : "",
             std::to_string(row.workspace_bytes), number(static_cast<double>(row.peak_resident_bytes) / 1e6),
             row.check_error ? number(*row.check_error, 2) : "", row.checked_against,
             row.error ? number(*row.error, 2) : "", row.status, row.note},
            "td", row.status);
    }
    page += "</table></div>\n";
    for (const std::string& note : notes) page += "<p>" + escaped(note) + "</p>\n";
    page += "<h2>To repeat it</h2>\n<pre>" + escaped(write_json(environment, true)) + "\n";
    for (const Json& peak : peaks) page += escaped(write_json(peak)) + "\n";
    return page + "</pre>\n</body></html>\n";
}

}  // namespace attend
