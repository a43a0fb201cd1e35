// SPDX-License-Identifier: Apache-2.0
// Folding of names and "did you mean".
#include "attend/config/names.hpp"

#include <algorithm>
#include <optional>
#include <utility>

namespace attend {
namespace {

// Longer names are not compared: nobody mistypes them, and the work stays bounded for hostile input.
constexpr std::size_t longest_compared = 100;

bool is_upper(char c) { return c >= 'A' && c <= 'Z'; }
bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

// Damerau-Levenshtein distance in its optimal string alignment form.
std::size_t edit_distance(std::string_view a, std::string_view b) {
    std::vector<std::size_t> before(b.size() + 1);
    std::vector<std::size_t> above(b.size() + 1);
    std::vector<std::size_t> row(b.size() + 1);
    for (std::size_t j = 0; j <= b.size(); ++j) above[j] = j;
    for (std::size_t i = 1; i <= a.size(); ++i) {
        row[0] = i;
        for (std::size_t j = 1; j <= b.size(); ++j) {
            const std::size_t replaced = above[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
            row[j] = std::min({above[j] + 1, row[j - 1] + 1, replaced});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                row[j] = std::min(row[j], before[j - 2] + 1);
            }
        }
        std::swap(before, above);
        std::swap(above, row);
    }
    return above[b.size()];
}

// How far a candidate is from the name; nothing if it is not near. Smaller is nearer.
std::optional<std::size_t> nearness(const std::string& name, const std::string& candidate) {
    const std::size_t longer = std::max(name.size(), candidate.size());
    const std::size_t limit = longer <= 3 ? 1 : longer <= 7 ? 2 : std::min<std::size_t>(longer / 3, 4);
    const std::size_t distance = edit_distance(name, candidate);
    // A distance that replaces the whole name is no likeness.
    if (distance <= limit && distance < longer) return distance;
    constexpr std::size_t shortest_part = 3;
    if (name.size() >= shortest_part && candidate.find(name) != std::string::npos) return 100 + candidate.size();
    if (candidate.size() >= shortest_part && name.find(candidate) != std::string::npos) return 200 + name.size();
    return std::nullopt;
}

}  // namespace

std::string fold_name(std::string_view name) {
    std::string folded;
    folded.reserve(name.size() + 4);
    for (std::size_t i = 0; i < name.size(); ++i) {
        const char c = name[i];
        if (!is_upper(c)) {
            folded += c;
            continue;
        }
        if (i > 0) {
            const char previous = name[i - 1];
            const bool follows_word = is_lower(previous) || is_digit(previous);
            const bool ends_run = is_upper(previous) && i + 1 < name.size() && is_lower(name[i + 1]);
            if (follows_word || ends_run) folded += '_';
        }
        folded += static_cast<char>(c - 'A' + 'a');
    }
    return folded;
}

std::vector<std::string> nearest_names(std::string_view name, std::span<const std::string> candidates,
                                       std::size_t max) {
    if (name.empty() || name.size() > longest_compared) return {};
    const std::string folded = fold_name(name);
    std::vector<std::pair<std::size_t, std::string>> found;
    for (const std::string& candidate : candidates) {
        if (candidate.empty() || candidate.size() > longest_compared) continue;
        if (const auto rank = nearness(folded, fold_name(candidate))) found.emplace_back(*rank, candidate);
    }
    std::sort(found.begin(), found.end());
    found.erase(std::unique(found.begin(), found.end()), found.end());
    std::vector<std::string> names;
    for (auto& [rank, candidate] : found) {
        // Behind a true likeness, candidates that merely share a part would be noise.
        if (!names.empty() && rank >= 100 && found.front().first < 100) break;
        if (names.size() == max) break;
        names.push_back(std::move(candidate));
    }
    return names;
}

std::string did_you_mean(std::string_view name, std::span<const std::string> candidates) {
    const std::vector<std::string> names = nearest_names(name, candidates);
    if (names.empty()) return {};
    std::string text = "; did you mean ";
    for (std::size_t i = 0; i < names.size(); ++i) {
        if (i > 0) text += i + 1 == names.size() ? " or " : ", ";
        text += '"';
        text += names[i];
        text += '"';
    }
    return text + "?";
}

std::string join_names(std::span<const std::string> names) {
    if (names.empty()) return "(none)";
    std::string text;
    for (const std::string& name : names) {
        if (!text.empty()) text += ", ";
        text += name;
    }
    return text;
}

}  // namespace attend
