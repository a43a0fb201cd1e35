// SPDX-License-Identifier: Apache-2.0
// attend heatmap: a picture of attention weights, or with --pattern of the keys that a mechanism reads.
#include "command.hpp"
#include "compute_inputs.hpp"
#include "errors.hpp"
#include "pattern_flags.hpp"
#include "session.hpp"
#include "text.hpp"
#include "weight_picture.hpp"

namespace attend::cli {
namespace {

struct Flags {
    ComputeFlags sizes;
    std::optional<std::string> pattern, item, head, output, pool, colours;
};

constexpr std::int64_t most_pixels = 1024, most_characters = 64;

Result<std::int64_t> index_of(const char* flag, const std::optional<std::string>& text) {
    if (!text) return 0;
    return parse_count(flag, *text, 0);
}
Error outside(const char* flag, std::int64_t given, std::int64_t extent) {
    return wrong_use(std::string("heatmap: ") + flag + " is " + std::to_string(given) + "; accepted: 0 to " +
                     std::to_string(extent - 1));
}

Result<Outcome> draw_keys(const Flags& flags, const GlobalFlags& global) {
    const struct {
        const char* name;
        bool given;
    } others[] = {{"--input", flags.sizes.input.has_value()}, {"--batch", flags.item.has_value()},
                  {"--dim", flags.sizes.dim.has_value()},     {"--seed", flags.sizes.options.seed.has_value()},
                  {"--pool", flags.pool.has_value()},         {"--colours", flags.colours.has_value()}};
    for (const auto& other : others)
        if (other.given)
            return wrong_use(std::string("heatmap: ") + other.name +
                             " has no meaning with --pattern, which reads no tensors; accepted: one of the two");
    const bool html = flags.output && flags.output->ends_with(".html"),
               svg = flags.output && flags.output->ends_with(".svg");
    if (flags.output && !html && !svg)
        return wrong_use("heatmap: --output is \"" + *flags.output + "\"; accepted: a name ending in .svg or .html");
    Result<Session> session = open_session(global);
    if (!session) return session.error();
    Result<PatternQuestion> question = pattern_question(*session->service, flags.sizes, "heatmap");
    if (!question) return question.error();
    const Result<std::int64_t> given_head = index_of("--head", flags.head);
    if (!given_head) return given_head.error();
    const std::int64_t head = *given_head;
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
        if (auto done = write_whole(*flags.output, page); !done) return done.error();
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

// Tensors of the call; generated ones have as many items as are needed to show the one asked for.
Result<ForwardInputs> inputs_of(const ComputeFlags& flags, const Sizes& sizes, std::int64_t item,
                                const MechanismRecord& mechanism, const CallOptions& call) {
    if (flags.input) {
        Result<ForwardInputs> inputs = read_inputs(*flags.input, &mechanism);
        if (!inputs) return inputs;
        if (auto done = check_heads(sizes, *inputs); !done) return done.error();
        return inputs;
    }
    GeneratedShape shape = sizes.generated;
    shape.batch = item + 1;
    return generate_inputs(shape, call.data_seed, &mechanism, call.options);
}

Result<Outcome> draw_weights(const Flags& flags, const GlobalFlags& global) {
    const auto ends = [&](const char* ending) { return flags.output && flags.output->ends_with(ending); };
    if (flags.output && !ends(".png") && !ends(".svg") && !ends(".html"))
        return wrong_use("heatmap: --output is \"" + *flags.output +
                         "\"; accepted: a name ending in .png, .svg or .html");
    const std::string pool = flags.pool.value_or("largest"), colours = flags.colours.value_or("log");
    if (pool != "largest" && pool != "mean")
        return wrong_use("heatmap: --pool is \"" + pool + "\"; accepted: largest, mean");
    if (colours != "log" && colours != "linear")
        return wrong_use("heatmap: --colours is \"" + colours + "\"; accepted: log, linear");
    const Result<std::int64_t> item = index_of("--batch", flags.item), head = index_of("--head", flags.head);
    if (!item) return item.error();
    if (!head) return head.error();
    if (!flags.sizes.input && !flags.sizes.length)
        return wrong_use(
            "heatmap: there is no input; accepted: --input FILE, or --sequence-length N for generated tensors");
    const Result<Sizes> sizes = sizes_of(flags.sizes);
    if (!sizes) return sizes.error();
    if (!flags.sizes.input && *head >= sizes->generated.heads) return outside("--head", *head, sizes->generated.heads);
    if (*item >= std::int64_t{1} << 20) return outside("--batch", *item, std::int64_t{1} << 20);
    Result<Session> session = open_session(global);
    if (!session) return session.error();
    Result<MechanismPtr> mechanism = find_mechanism(*session->service, *flags.sizes.mechanism, "heatmap");
    if (!mechanism) return mechanism.error();
    Result<CallOptions> call = collect_options(flags.sizes.options, mechanism->get());
    if (!call) return call.error();
    add_taken(*call, **mechanism, call->options);
    Result<ForwardInputs> inputs = inputs_of(flags.sizes, *sizes, *item, **mechanism, *call);
    if (!inputs) return inputs.error();
    ForwardOptions options{*flags.sizes.mechanism, call->options, 0, 0, false, true, call->precision, {}};
    if (flags.sizes.input) {
        options.heads = sizes->heads;
        options.kv_heads = sizes->kv_heads;
    }
    WeightPicture picture(flags.output ? most_pixels : most_characters, pool == "mean" ? Pool::mean : Pool::largest);
    auto done =
        session->service->visit_attention_weights(*inputs, options, {}, [&](const WeightRows& rows) -> Result<void> {
            if (*item >= rows.batch) return outside("--batch", *item, rows.batch);
            if (*head >= rows.heads) return outside("--head", *head, rows.heads);
            picture.take(rows, *item, *head);
            return {};
        });
    if (!done) return done.error();
    std::string title = (*mechanism)->name + ", " + std::to_string(picture.queries()) + " queries, " +
                        std::to_string(picture.keys()) + " keys, head " + std::to_string(*head);
    if (flags.item) title += ", item " + std::to_string(*item);
    const Colours scale = colours == "log" ? Colours::logarithmic : Colours::linear;
    if (flags.output) {
        const Result<std::string> drawing = ends(".png")   ? picture.png(scale)
                                            : ends(".svg") ? picture.svg(title, scale)
                                                           : picture.html(title, scale);
        if (!drawing) return drawing.error();
        if (auto written = write_whole(*flags.output, *drawing); !written) return written.error();
    }
    if (!global.json)
        return Outcome{exit_done, flags.output ? title + ": written to " + *flags.output + "\n"
                                               : title + ", largest weight " + number_text(picture.largest(), 3) +
                                                     "\n" + picture.text(scale)};
    Json json = Json::object()
                    .set("mechanism", (*mechanism)->name)
                    .set("queries", picture.queries())
                    .set("keys", picture.keys())
                    .set("batch", *item)
                    .set("head", *head)
                    .set("rows", picture.rows())
                    .set("columns", picture.columns())
                    .set("pool", pool)
                    .set("colours", colours)
                    .set("largest", picture.largest());
    if (flags.output) json.set("output", *flags.output);
    return Outcome{exit_done, json_text(json)};
}

Result<Outcome> run(Flags flags, const GlobalFlags& global) {
    if (flags.pattern && flags.sizes.mechanism)
        return wrong_use("heatmap: \"" + *flags.sizes.mechanism + "\" is named beside --pattern " + *flags.pattern +
                         "; accepted: one mechanism");
    if (!flags.pattern && !flags.sizes.mechanism)
        return wrong_use(
            "heatmap: no mechanism is named; accepted: attend heatmap MECHANISM, or attend heatmap --pattern MECHANISM",
            "`attend list` shows all; `attend list --category sparse` those that have a pattern");
    if (!flags.pattern) return draw_weights(flags, global);
    flags.sizes.mechanism = flags.pattern;
    return draw_keys(flags, global);
}

}  // namespace

void add_heatmap(Commands& commands) {
    Command command = commands.add(
        "heatmap", "Draws attention weights, or the keys that a mechanism reads: queries downwards, keys to the right.",
        "  attend heatmap flash-attention-v2 --input qkv.safetensors --causal --head 3 --output weights.html\n"
        "      attention weights of a head as a picture\n"
        "  attend heatmap --pattern longformer-attention --sequence-length 1024 --window-size 64\n"
        "      which keys are read, in the terminal");
    auto flags = std::make_shared<Flags>();
    command.add_option("MECHANISM", flags->sizes.mechanism, "The mechanism whose weights are drawn").type_name("");
    command.add_option("--pattern", flags->pattern, "Draw the keys that this mechanism chooses by position")
        .type_name("MECHANISM");
    command.add_option("--input", flags->sizes.input, "Tensors: .safetensors, .npz or .npy; default: generated ones")
        .type_name("FILE");
    declare_pattern_flags(command, flags->sizes);
    command.add_option("--dim", flags->sizes.dim, "Head width of generated tensors; default 64").type_name("D");
    command.add_option("--seed", flags->sizes.options.seed, "Seed of generated tensors, and option seed")
        .type_name("S");
    command.add_option("--batch", flags->item, "Batch item to show; default 0").type_name("I");
    command.add_option("--head", flags->head, "Query head to show; default 0").type_name("H");
    command.add_option("--pool", flags->pool, "What a pixel of several weights shows: largest (default) or mean")
        .type_name("HOW");
    command.add_option("--colours", flags->colours, "log (default, four decades) or linear").type_name("SCALE");
    command.add_option("--output", flags->output, "Where to write the picture: .png (weights), .svg or .html")
        .type_name("FILE");
    commands.handle(command, [flags](const GlobalFlags& global) { return run(*flags, global); });
}

}  // namespace attend::cli
