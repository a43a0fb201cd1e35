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
    std::string name;
    std::vector<std::pair<double, double>> points;
};

constexpr const char* colours[] = {"#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e",
                                   "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22"};

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
    constexpr double width = 720, height = 360, left = 70, right = 190, top = 30, bottom = 45;
    const auto place_x = [&](double x) {
        return left + (width - left - right) * std::log(x / x_low) / std::log(x_high / x_low);
    };
    const auto place_y = [&](double y) {
        return height - bottom - (height - top - bottom) * std::log(y / y_low) / std::log(y_high / y_low);
    };
    std::string svg = "<svg viewBox=\"0 0 720 360\" role=\"img\"><text x=\"70\" y=\"18\" class=\"title\">" +
                      escaped(title) + "</text>\n";
    const auto line = [&](double x1, double y1, double x2, double y2, const char* style) {
        svg += "<line x1=\"" + number(x1, 6) + "\" y1=\"" + number(y1, 6) + "\" x2=\"" + number(x2, 6) + "\" y2=\"" +
               number(y2, 6) + "\" class=\"" + style + "\"/>";
    };
    const auto label = [&](double x, double y, const std::string& text, const char* anchor) {
        svg += "<text x=\"" + number(x, 6) + "\" y=\"" + number(y, 6) + "\" text-anchor=\"" + anchor + "\">" +
               escaped(text) + "</text>";
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
    for (std::size_t at = 0; at < series.size(); ++at) {
        const std::string colour = colours[at % std::size(colours)];
        std::string path;
        for (const auto& [x, y] : series[at].points) {
            path += number(place_x(x), 6) + "," + number(place_y(y), 6) + " ";
            svg += "<circle cx=\"" + number(place_x(x), 6) + "\" cy=\"" + number(place_y(y), 6) + "\" r=\"3\" fill=\"" +
                   colour + "\"><title>" + escaped(series[at].name + ": " + number(x) + ", " + number(y)) +
                   "</title></circle>";
        }
        if (lines) svg += "<polyline points=\"" + path + "\" fill=\"none\" stroke=\"" + colour + "\"/>";
        const double y = top + 12.0 * static_cast<double>(at);
        svg += "<rect x=\"" + number(width - right + 10) + "\" y=\"" + number(y) +
               "\" width=\"9\" height=\"9\" fill=\"" + colour + "\"/>";
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
    const bool together = report.suite == "scaling" || report.suite == "precision";
    if (together) text += drawing("Time against length", "keys", "ms", collect(same, "", length, time), true);
    for (const std::string& category : categories)
        if (!category.empty() && !together)
            text +=
                drawing("Time against length: " + category, "keys", "ms", collect(same, category, length, time), true);
    text += drawing("Error against time", "ms", "relative error",
                    collect(same, "", time,
                            [](const BenchmarkRow& row) { return row.error.value_or(row.check_error.value_or(0.0)); }),
                    false);
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
    std::vector<Series> memory =
        collect(same, "", length, [](const BenchmarkRow& row) { return static_cast<double>(row.extra_bytes) / 1e6; });
    text += drawing("Extra memory against length", "keys", "MB", std::move(memory), true);
    return text;
}

std::string table_row(const std::vector<std::string>& cells, const char* tag, const std::string& style = "") {
    std::string text = "<tr" + (style.empty() ? "" : " class=\"" + style + "\"") + ">";
    for (const std::string& cell : cells) text += "<" + std::string(tag) + ">" + escaped(cell) + "</" + tag + ">";
    return text + "</tr>\n";
}

}  // namespace

std::string BenchmarkReport::html() const {
    std::string page =
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>attend benchmark: " + escaped(suite) +
        "</title>\n<style>body{font:14px "
        "system-ui,sans-serif;margin:2em;max-width:1200px}table{border-collapse:collapse;margin:1em 0}"
        "td,th{padding:2px 8px;border-bottom:1px solid "
        "#ddd;text-align:right}td:first-child,th:first-child{text-align:left}"
        "svg{width:100%;max-width:860px;display:block;margin:1em 0}svg text{font-size:11px}svg "
        ".title{font-size:14px;font-weight:bold}"
        ".grid{stroke:#ddd}.missed,.wrong,.failed{background:#fdd}.aim{background:#dfd}.not_applicable,.not_measured,."
        "not_run{color:#777}</style></head><body>\n"
        "<h1>attend benchmark: " +
        escaped(suite) + "</h1>\n<p>" + std::string(passed ? "passed" : "failed") + " in " + number(elapsed_s, 3) +
        " s</p>\n";
    page += charts(*this);
    const bool targets =
        std::any_of(rows.begin(), rows.end(), [](const BenchmarkRow& row) { return row.target.has_value(); });
    if (targets) {
        page += "<h2>Targets</h2>\n<table>" +
                table_row({"row", "measured", "must", "aim", "unit", "result", "median ms", "note"}, "th");
        for (const BenchmarkRow& row : rows)
            if (row.target)
                page += table_row({row.name, row.target->measured ? number(*row.target->measured) : "",
                                   number(row.target->must), number(row.target->aim), row.target->unit,
                                   row.target->result, row.median_ms > 0 ? number(row.median_ms) : "", row.note},
                                  "td", row.target->result);
        page += "</table>\n";
    }
    page += "<h2>Rows</h2>\n<table>" +
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
    page += "</table>\n";
    for (const std::string& note : notes) page += "<p>" + escaped(note) + "</p>\n";
    page += "<h2>To repeat it</h2>\n<pre>" + escaped(write_json(environment, true)) + "\n";
    for (const Json& peak : peaks) page += escaped(write_json(peak)) + "\n";
    return page + "</pre>\n</body></html>\n";
}

}  // namespace attend
