// SPDX-License-Identifier: Apache-2.0
#include "text.hpp"

#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "interrupt.hpp"
#include "io/mapped_file.hpp"

namespace attend::cli {
namespace {

bool color_wanted() {
    const char* no_color = ::getenv("NO_COLOR");
    const char* term = ::getenv("TERM");
    return ::isatty(STDOUT_FILENO) != 0 && (no_color == nullptr || *no_color == '\0') &&
           (term == nullptr || std::string_view(term) != "dumb");
}

// Characters, not bytes: continuation bytes of UTF-8 take no column.
std::size_t width_of(std::string_view text) {
    return static_cast<std::size_t>(std::count_if(
        text.begin(), text.end(), [](char c) { return (static_cast<unsigned char>(c) & 0xC0u) != 0x80u; }));
}

}  // namespace

std::string bold(std::string_view text) {
    static const bool color = color_wanted();
    return color ? "\033[1m" + std::string(text) + "\033[0m" : std::string(text);
}

std::string Table::text(std::string_view indent) const {
    std::vector<std::size_t> widths;
    const auto measure = [&](const std::vector<std::string>& row) {
        widths.resize(std::max(widths.size(), row.size()));
        for (std::size_t column = 0; column < row.size(); ++column)
            widths[column] = std::max(widths[column], width_of(row[column]));
    };
    measure(header_);
    for (const auto& row : rows_) measure(row);
    const auto line = [&](const std::vector<std::string>& row) {
        std::string out;
        for (std::size_t column = 0; column < row.size(); ++column) {
            out += row[column];
            if (column + 1 < row.size()) out.append(widths[column] - width_of(row[column]) + 2, ' ');
        }
        while (!out.empty() && out.back() == ' ') out.pop_back();
        return out;
    };
    std::string out;
    if (!header_.empty()) out += std::string(indent) + bold(line(header_)) + "\n";
    for (const auto& row : rows_) out += std::string(indent) + line(row) + "\n";
    return out;
}

std::string aligned(const std::vector<std::pair<std::string, std::string>>& lines, std::string_view indent) {
    Table table({});
    for (const auto& [name, value] : lines) table.add({name, value});
    return table.text(indent);
}

std::string join(const std::vector<std::string>& words, std::string_view between) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : std::string(between)) + word;
    return text;
}

std::string number_text(double number, int digits) {
    std::array<char, 64> buffer{};
    const auto [end, status] =
        std::to_chars(buffer.data(), buffer.data() + buffer.size(), number, std::chars_format::general, digits);
    return status == std::errc{} ? std::string(buffer.data(), end) : std::string("?");
}

std::string bytes_text(double bytes) {
    constexpr std::array units{"B", "KiB", "MiB", "GiB", "TiB"};
    std::size_t unit = 0;
    while (bytes >= 1024.0 && unit + 1 < units.size()) {
        bytes /= 1024.0;
        ++unit;
    }
    return number_text(bytes) + " " + units[unit];
}

std::string json_text(const Json& document) { return write_json(document, true) + "\n"; }

Result<void> write_whole(const std::string& path, const std::string& text) {
    const UninterruptedSection writing;
    Result<io::OutputFile> file = io::OutputFile::create(path);
    if (!file) return file.error();
    if (auto done = file->write(text.data(), text.size()); !done) return done;
    return file->commit();
}

}  // namespace attend::cli
