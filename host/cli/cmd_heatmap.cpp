// SPDX-License-Identifier: Apache-2.0
// attend heatmap --pattern: a picture of the keys that a mechanism reads.
#include <fstream>

#include "command.hpp"
#include "errors.hpp"
#include "interrupt.hpp"
#include "pattern_flags.hpp"
#include "session.hpp"
#include "text.hpp"

namespace attend::cli {
namespace {

struct Flags {
    ComputeFlags sizes;
    std::optional<std::string> head, output;
};

Result<void> write_text(const std::string& path, const std::string& text) {
    const UninterruptedSection writing;
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << text;
    file.close();
    if (!file) return Error{ErrorCode::io, "heatmap: cannot write \"" + path + "\"", ""};
    return {};
}

Result<Outcome> run(const Flags& flags, const GlobalFlags& global) {
    if (!flags.sizes.mechanism)
        return wrong_use("heatmap: no mechanism is named; accepted: attend heatmap --pattern MECHANISM",
                         "`attend list --category sparse` shows those that have a pattern");
    const bool html = flags.output && flags.output->ends_with(".html"),
               svg = flags.output && flags.output->ends_with(".svg");
    if (flags.output && !html && !svg)
        return wrong_use("heatmap: --output is \"" + *flags.output + "\"; accepted: a name ending in .svg or .html");
    Result<Session> session = open_session(global);
    if (!session) return session.error();
    Result<PatternQuestion> question = pattern_question(*session->service, flags.sizes, "heatmap");
    if (!question) return question.error();
    std::int64_t head = 0;
    if (flags.head) {
        const Result<std::int64_t> given = parse_count("--head", *flags.head, 0);
        if (!given) return given.error();
        head = *given;
    }
    Result<PatternPicture> picture = draw_pattern(*session->service, *question, head, flags.output ? 128 : 64);
    if (!picture) return picture.error();
    const std::string title = question->mechanism + ", " + std::to_string(question->sizes.q_len) + " queries (down), " +
                              std::to_string(question->sizes.kv_len) + " keys (right), head " + std::to_string(head);
    if (flags.output) {
        const std::string drawing = picture->svg(title);
        const std::string page = html ? "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>" +
                                            question->mechanism + "</title></head><body style=\"max-width:40em\">\n" +
                                            drawing + "</body></html>\n"
                                      : drawing;
        if (auto done = write_text(*flags.output, page); !done) return done.error();
    }
    if (!global.json)
        return Outcome{exit_done,
                       flags.output ? title + ": written to " + *flags.output + "\n" : title + "\n" + picture->text()};
    Json rows = Json::array();
    for (std::int64_t row = 0; row < picture->rows; ++row) {
        Json cells = Json::array();
        for (std::int64_t column = 0; column < picture->columns; ++column)
            cells.push(picture->shares[static_cast<std::size_t>(row * picture->columns + column)]);
        rows.push(std::move(cells));
    }
    Json json = Json::object()
                    .set("mechanism", question->mechanism)
                    .set("queries", question->sizes.q_len)
                    .set("keys", question->sizes.kv_len)
                    .set("head", head)
                    .set("shares", std::move(rows));
    if (flags.output) json.set("output", *flags.output);
    return Outcome{exit_done, json_text(json)};
}

}  // namespace

void add_heatmap(Commands& commands) {
    Command command = commands.add(
        "heatmap", "Draws the keys that a mechanism reads: queries downwards, keys to the right.",
        "  attend heatmap --pattern longformer-attention --sequence-length 1024 --window-size 64\n"
        "      in the terminal\n"
        "  attend heatmap --pattern bigbird-attention --sequence-length 4096 --causal --output bigbird.svg\n"
        "      as a picture");
    auto flags = std::make_shared<Flags>();
    command.add_option("--pattern", flags->sizes.mechanism, "The mechanism; one that chooses its keys by position")
        .type_name("MECHANISM");
    declare_pattern_flags(command, flags->sizes);
    command.add_option("--head", flags->head, "Query head to show; default 0").type_name("H");
    command.add_option("--output", flags->output, "Where to write the picture: .svg or .html").type_name("FILE");
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
