// SPDX-License-Identifier: Apache-2.0
#include "pattern_flags.hpp"

#include <algorithm>
#include <limits>

#include "errors.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {

void declare_pattern_flags(const Command& command, ComputeFlags& flags) {
    command.add_option("--sequence-length", flags.length, "Queries").type_name("N");
    command.add_option("--sequence-length-k", flags.length_k, "Keys; default: as many").type_name("M");
    command.add_option("--heads", flags.heads, "Query heads; default 1").type_name("H");
    command.add_option("--kv-heads", flags.kv_heads, "Key heads; default: as many as query heads").type_name("H");
    command.add_option("--set", flags.options.sets, "One option of the mechanism, repeatable; value in JSON or bare")
        .type_name("NAME=VALUE")
        .allow_extra_args(false);
    command.add_option("--options", flags.options.file, "Options from a JSON object; --set goes before it")
        .type_name("FILE");
    command.add_flag("--causal", flags.options.causal, "Option causal = true");
    command.add_option("--window-size", flags.options.window_size, "Option window_size").type_name("W");
}

Result<PatternQuestion> pattern_question(const AttentionService& service, const ComputeFlags& flags,
                                         const std::string& place) {
    if (!flags.length)
        return wrong_use(place + ": no length is given; accepted: --sequence-length N", "for example 1024");
    const Result<Sizes> sizes = sizes_of(flags);
    if (!sizes) return sizes.error();
    const Result<MechanismPtr> mechanism = find_mechanism(service, *flags.mechanism, place);
    if (!mechanism) return mechanism.error();
    const Result<CallOptions> options = collect_options(flags.options, mechanism->get());
    if (!options) return options.error();
    const GeneratedShape& shape = sizes->generated;
    return PatternQuestion{
        *flags.mechanism, {1, shape.heads, shape.kv_heads, shape.q_len, shape.kv_len, shape.width}, options->options};
}

double PatternCount::all() const {
    return static_cast<double>(question.sizes.heads) * static_cast<double>(question.sizes.q_len) *
           static_cast<double>(question.sizes.kv_len);
}

Result<PatternCount> count_pattern(const AttentionService& service, PatternQuestion question) {
    PatternCount count;
    count.question = std::move(question);
    const CallSizes& sizes = count.question.sizes;
    std::vector<std::int64_t> keys(static_cast<std::size_t>(sizes.q_len));
    count.least = sizes.q_len > 0 ? std::numeric_limits<std::int64_t>::max() : 0;
    for (std::int64_t head = 0; head < sizes.heads; ++head) {
        std::fill(keys.begin(), keys.end(), 0);
        const auto ask = [&](std::int64_t at_once, const PatternVisitor& visitor) {
            return service.visit_pattern(count.question.mechanism, sizes, count.question.options,
                                         {head, 0, sizes.q_len, at_once}, visitor);
        };
        const auto length = [](const PatternRange& range) {
            return std::max<std::int64_t>(0, (range.end - range.begin + range.step - 1) / range.step);
        };
        if (auto done = ask(
                1,
                [&](const PatternRange& range) { keys[static_cast<std::size_t>(range.first_row)] += length(range); });
            !done)
            return done.error();
        for (const std::int64_t row : keys) {
            count.pairs += static_cast<double>(row);
            count.least = std::min(count.least, row);
            count.most = std::max(count.most, row);
        }
        std::int64_t last_row = -1;
        if (auto done = ask(0,
                            [&](const PatternRange& range) {
                                if (range.first_row != last_row) ++count.tiles;
                                last_row = range.first_row;
                                count.tile_rows = std::max(count.tile_rows, range.num_rows);
                                ++count.ranges;
                                count.partial += range.partial ? 1 : 0;
                                count.visited +=
                                    static_cast<double>(range.num_rows) * static_cast<double>(length(range));
                            });
            !done)
            return done.error();
    }
    return count;
}

Json PatternCount::json() const {
    const double rows = static_cast<double>(question.sizes.heads) * static_cast<double>(question.sizes.q_len);
    return Json::object()
        .set("mechanism", question.mechanism)
        .set("queries", question.sizes.q_len)
        .set("keys", question.sizes.kv_len)
        .set("heads", question.sizes.heads)
        .set("pairs", pairs)
        .set("density", all() > 0 ? pairs / all() : 0.0)
        .set("row_keys",
             Json::object().set("least", least).set("mean", rows > 0 ? pairs / rows : 0.0).set("most", most))
        .set("computed", Json::object()
                             .set("tiles", tiles)
                             .set("rows_of_a_tile", tile_rows)
                             .set("ranges", ranges)
                             .set("partial_ranges", partial)
                             .set("pairs", visited)
                             .set("skipped", all() > 0 ? 1.0 - visited / all() : 0.0));
}

std::string PatternCount::text() const {
    const auto percent = [](double share) { return number_text(100.0 * share, 3) + " %"; };
    const double rows = static_cast<double>(question.sizes.heads) * static_cast<double>(question.sizes.q_len);
    const double whole = std::max(all(), 1.0);
    return bold(question.mechanism) + " on " + std::to_string(question.sizes.q_len) + " queries and " +
           std::to_string(question.sizes.kv_len) + " keys, heads " + std::to_string(question.sizes.heads) + "\n" +
           aligned(
               {{"seen",
                 number_text(pairs) + " of " + number_text(all()) + " pairs, density " + percent(pairs / whole)},
                {"keys a row", "least " + std::to_string(least) + ", mean " +
                                   number_text(rows > 0 ? pairs / rows : 0.0) + ", most " + std::to_string(most)},
                {"tiles", std::to_string(tiles) + " of up to " + std::to_string(tile_rows) + " rows; " +
                              std::to_string(ranges) + " key ranges, " + std::to_string(partial) + " of them partial"},
                {"computed", number_text(visited) + " pairs; " + percent(1.0 - visited / whole) +
                                 " of dense attention is skipped, " + percent(visited > 0 ? pairs / visited : 1.0) +
                                 " of what is computed is seen"}});
}

Result<PatternPicture> draw_pattern(const AttentionService& service, const PatternQuestion& question, std::int64_t head,
                                    std::int64_t most_cells) {
    const CallSizes& sizes = question.sizes;
    PatternPicture picture;
    picture.rows = std::min(sizes.q_len, most_cells);
    picture.columns = std::min(sizes.kv_len, most_cells);
    if (picture.rows == 0 || picture.columns == 0) return picture;
    std::vector<double> seen(static_cast<std::size_t>(picture.rows * picture.columns), 0.0);
    const auto edge = [&](std::int64_t column) { return column * sizes.kv_len / picture.columns; };
    // Cell c holds keys [edge(c), edge(c + 1)).
    const auto column_of = [&](std::int64_t key) {
        std::int64_t column = key * picture.columns / sizes.kv_len;
        while (key < edge(column)) --column;
        while (key >= edge(column + 1)) ++column;
        return column;
    };
    const auto row_of = [&](std::int64_t row) { return row * picture.rows / sizes.q_len; };
    if (auto done = service.visit_pattern(
            question.mechanism, sizes, question.options, {head, 0, sizes.q_len, 1},
            [&](const PatternRange& range) {
                double* cells = seen.data() + row_of(range.first_row) * picture.columns;
                if (range.step != 1) {
                    for (std::int64_t key = range.begin; key < range.end; key += range.step)
                        cells[column_of(key)] += 1.0;
                    return;
                }
                for (std::int64_t key = range.begin; key < range.end;) {
                    const std::int64_t column = column_of(key), next = std::min(edge(column + 1), range.end);
                    cells[column] += static_cast<double>(next - key);
                    key = next;
                }
            });
        !done)
        return done.error();
    std::vector<std::int64_t> rows_in(static_cast<std::size_t>(picture.rows), 0);
    for (std::int64_t row = 0; row < sizes.q_len; ++row) ++rows_in[static_cast<std::size_t>(row_of(row))];
    picture.shares.resize(seen.size());
    for (std::int64_t row = 0; row < picture.rows; ++row)
        for (std::int64_t column = 0; column < picture.columns; ++column) {
            const auto at = static_cast<std::size_t>(row * picture.columns + column);
            const double pairs = static_cast<double>(rows_in[static_cast<std::size_t>(row)]) *
                                 static_cast<double>(edge(column + 1) - edge(column));
            picture.shares[at] = pairs > 0 ? seen[at] / pairs : 0.0;
        }
    return picture;
}

std::string PatternPicture::text() const {
    constexpr const char* shades[] = {"·", "░", "▒", "▓", "█"};
    std::string out;
    for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t column = 0; column < columns; ++column) {
            const double share = shares[static_cast<std::size_t>(row * columns + column)];
            const int shade = share <= 0 ? 0 : share >= 1 ? 4 : std::clamp(static_cast<int>(share * 4.0) + 1, 1, 3);
            out += shades[shade];
        }
        out += "\n";
    }
    return out;
}

std::string PatternPicture::svg(const std::string& title) const {
    std::string escaped;
    for (const char c : title)
        escaped += c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : std::string(1, c);
    constexpr std::int64_t cell = 4, top = 24;
    std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + std::to_string(columns * cell) +
                      " " + std::to_string(rows * cell + top) +
                      "\" font-family=\"sans-serif\" font-size=\"11\">\n<title>" + escaped +
                      "</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n<text x=\"2\" y=\"15\">" +
                      escaped + "</text>\n<g fill=\"#1f4e79\">\n";
    // Neighbours of one shade are one rectangle.
    const auto shade_at = [&](std::int64_t row, std::int64_t column) {
        return static_cast<int>(shares[static_cast<std::size_t>(row * columns + column)] * 100.0 + 0.5);
    };
    for (std::int64_t row = 0; row < rows; ++row)
        for (std::int64_t column = 0; column < columns;) {
            const int shade = shade_at(row, column);
            std::int64_t end = column + 1;
            while (end < columns && shade_at(row, end) == shade) ++end;
            const double share = shares[static_cast<std::size_t>(row * columns + column)];
            if (share > 0)
                out += "<rect x=\"" + std::to_string(column * cell) + "\" y=\"" + std::to_string(row * cell + top) +
                       "\" width=\"" + std::to_string((end - column) * cell) + "\" height=\"" + std::to_string(cell) +
                       "\" opacity=\"" + number_text(std::max(0.12, std::min(1.0, share)), 2) + "\"/>\n";
            column = end;
        }
    return out + "</g>\n</svg>\n";
}

}  // namespace attend::cli
