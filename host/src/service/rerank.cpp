// SPDX-License-Identifier: Apache-2.0
// Candidates by attention. Exact softmax mechanisms and memory-attention need products of rows alone, which are computed
// here; every other mechanism is asked for its weights over the candidates as keys, and its scores follow from those.
#include "attend/rerank.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "attend/config/names.hpp"
#include "service/call_form.hpp"
#include "service/row_products.hpp"
#include "service/service_state.hpp"

namespace attend {
namespace {

constexpr double dropped = -std::numeric_limits<double>::infinity();
constexpr double norm_eps = 1e-6;
constexpr double default_attn_scale = 20.0;
constexpr double least_weight = 1.1754943508222875e-38;  // below it float32 loses digits, then everything
constexpr int most_passes = 64;
constexpr std::int64_t value_columns = 256;  // of the unit matrix at a time

Error refused(ErrorCode code, std::string what) { return {code, "rerank: " + std::move(what), ""}; }

Error unsupported(const MechanismRecord& mechanism, const std::string& why) {
    return {ErrorCode::unsupported,
            "rerank: " + mechanism.name + " " + why +
                "; accepted: a mechanism of softmax over the candidates, or with a feature map",
            "memory-attention is the default"};
}

bool is_memory(const MechanismRecord& mechanism) { return mechanism.built_in && mechanism.name == "memory-attention"; }

// What is asked, in numbers.
struct Question {
    const MechanismRecord& mechanism;
    const RerankOptions& options;
    std::int64_t rows{}, count{}, width{}, heads{};
    bool normalize{};
    [[nodiscard]] std::int64_t head_width() const { return width / heads; }
};

// Scores before softmax of every head and candidate, [heads, count], the mean over the rows of the query.
using Logits = std::vector<double>;
using Shape = std::vector<std::int64_t>;

// ---- Softmax over scaled products ----------------------------------------------------------------------------------

struct ProductOptions {
    double scale{}, softcap{};
    std::int64_t kept{};  // best candidates of a row; 0: all
    bool causal{};
};

const Json* find_value(const NamedValues& options, std::string_view name) {
    const auto found =
        std::find_if(options.begin(), options.end(), [&](const auto& entry) { return fold_name(entry.first) == name; });
    return found == options.end() ? nullptr : &found->second;
}

// Whether its core form is softmax over products and nothing else asked of it changes that.
bool is_products(const Question& question) {
    if (is_memory(question.mechanism)) return true;
    if (question.mechanism.numerics != ATTEND_EXACT || !question.options.weights.empty()) return false;
    return std::all_of(question.options.options.begin(), question.options.options.end(), [](const auto& entry) {
        const std::string name = fold_name(entry.first);
        return name == "scale" || name == "softcap";
    });
}

Result<ProductOptions> product_options(const Question& question) {
    const MechanismRecord& mechanism = question.mechanism;
    const bool memory = is_memory(mechanism);
    ProductOptions result;
    if (!question.options.options.empty()) {
        const Result<std::vector<OptionValue>> checked =
            complete_options(mechanism.name, mechanism.options, question.options.options);
        if (!checked) return checked.error();
        for (const OptionValue& option : *checked) {
            if (!option.given) continue;
            if (option.name == "softcap")
                result.softcap = std::get<double>(option.value);
            else if (option.name == "scale")
                result.scale = std::get<double>(option.value);
            else if (memory && option.name == "top_k")
                result.kept = std::get<std::int64_t>(option.value);
            else
                return refused(ErrorCode::option,
                               "option \"" + option.name +
                                   "\" is given, which ordering candidates does not read; accepted: " +
                                   (memory ? "top_k, softcap, scale" : "softcap, scale"));
        }
    }
    if (question.options.scale && *question.options.scale != 0) result.scale = *question.options.scale;
    const OptionSpec* causal = mechanism.find_option("causal");
    result.causal = !memory && causal != nullptr && causal->default_value == Json(true);
    if (result.scale == 0)
        result.scale = memory && question.normalize ? 1.0 : 1.0 / std::sqrt(static_cast<double>(question.head_width()));
    return result;
}

// |attn_scale| of every head, 1 where nothing is normalised.
Result<std::vector<double>> attn_scales(const Question& question) {
    const bool used = is_memory(question.mechanism) && question.normalize;
    std::vector<double> scales(static_cast<std::size_t>(question.heads), used ? default_attn_scale : 1.0);
    for (const auto& [name, tensor] : question.options.weights) {
        if (fold_name(name) != "attn_scale" || !used)
            return refused(ErrorCode::weight, "weight \"" + name +
                                                  "\" is given, which this call does not read; accepted: " +
                                                  (used ? "attn_scale" : "attn_scale with normalize"));
        const auto wide = is_model_float(tensor.dtype) ? convert(tensor, DType::f64)
                                                       : Result<Tensor>(Error{ErrorCode::dtype, "is no float", ""});
        const auto row = wide ? contiguous_copy(*wide) : wide;
        if (!row || row->shape != std::vector<std::int64_t>{question.heads})
            return refused(ErrorCode::weight, "weight \"attn_scale\" has shape " + shape_text(tensor.shape) +
                                                  " and type " + dtype_name(tensor.dtype) +
                                                  "; accepted: floats of shape [" + std::to_string(question.heads) +
                                                  "]");
        for (std::size_t head = 0; head < scales.size(); ++head) {
            scales[head] = std::abs(row->as<const double>()[head]);
            if (!std::isfinite(scales[head]))
                return refused(ErrorCode::nonfinite, "weight \"attn_scale\" is not finite; accepted: finite numbers");
        }
    }
    return scales;
}

// Leaves the best of a row, by scores rounded to float32, ties to the lower index; the others are dropped.
void keep_best(double* row, std::int64_t count, std::int64_t kept, std::vector<std::int64_t>& order) {
    order.resize(static_cast<std::size_t>(count));
    std::iota(order.begin(), order.end(), 0);
    const auto better = [row](std::int64_t a, std::int64_t b) {
        const auto x = static_cast<float>(row[a]), y = static_cast<float>(row[b]);
        return x != y ? x > y : a < b;
    };
    std::nth_element(order.begin(), order.begin() + kept, order.end(), better);
    for (auto at = order.begin() + kept; at != order.end(); ++at) row[*at] = dropped;
}

// Rows [count, width] of float or double.
template <class T>
Result<Logits> product_logits(const Question& question, const T* rows, const Tensor& query,
                              const ProductOptions& options, const std::vector<double>& attn_scale,
                              RowProducts (*products)(const T*, const double*, std::int64_t)) {
    const std::int64_t width = question.head_width();
    const auto count = static_cast<std::size_t>(question.count);
    Logits logits(static_cast<std::size_t>(question.heads) * count, 0.0);
    const auto* all_queries = query.as<const double>();
    // One row at a time where its best are chosen or keys hidden; else the sum over rows goes to the result at once.
    std::vector<double> scores(count);
    std::vector<std::int64_t> order;
    for (std::int64_t head = 0; head < question.heads; ++head) {
        double* sum = logits.data() + static_cast<std::size_t>(head) * count;
        for (std::int64_t row = 0; row < question.rows; ++row) {
            const double* part = all_queries + row * question.width + head * width;
            const double own =
                question.normalize ? std::sqrt(std::inner_product(part, part + width, part, 0.0) + norm_eps) : 1.0;
            const T* candidate = rows + head * width;
            for (std::size_t at = 0; at < count; ++at, candidate += question.width) {
                const RowProducts found = products(candidate, part, width);
                scores[at] =
                    question.normalize ? found.product / (own * std::sqrt(found.squares + norm_eps)) : found.product;
                if (!std::isfinite(scores[at]) || !std::isfinite(found.squares))
                    return refused(ErrorCode::nonfinite, "query or candidate " + std::to_string(at) +
                                                             " holds NaN or infinity; accepted: finite numbers");
            }
            if (options.kept > 0 && options.kept < question.count)
                keep_best(scores.data(), question.count, options.kept, order);
            const double scale = options.scale * attn_scale[static_cast<std::size_t>(head)];
            const std::int64_t hidden =
                options.causal ? std::max<std::int64_t>(0, row + question.count - question.rows + 1) : question.count;
            for (std::size_t at = 0; at < count; ++at) {
                double score = scores[at] * scale;
                if (scores[at] == dropped || static_cast<std::int64_t>(at) >= hidden)
                    score = dropped;
                else if (options.softcap > 0)
                    score = options.softcap * std::tanh(score / options.softcap);
                sum[at] += score;
            }
        }
        if (question.rows > 1)
            for (std::size_t at = 0; at < count; ++at) sum[at] /= static_cast<double>(question.rows);
    }
    return logits;
}

// ---- Whatever the mechanism computes -------------------------------------------------------------------------------

// [rows, width] as heads [1, H, rows, width / H], normalised if asked.
Result<Tensor> as_heads(const Question& question, const Tensor& rows) {
    Result<Tensor> own = convert(rows, DType::f32);
    if (own) own = contiguous_copy(*own);
    if (!own) return own;
    const std::int64_t width = question.head_width(), count = rows.shape[0];
    if (question.normalize) {
        Result<Tensor> scaled = Tensor::allocate(DType::f32, own->shape, Tensor::Fill::none);
        if (!scaled) return scaled;
        for (std::int64_t part = 0; part < count * question.heads; ++part) {
            const float* from = own->as<const float>() + part * width;
            double squares = norm_eps;
            for (std::int64_t at = 0; at < width; ++at)
                squares += static_cast<double>(from[at]) * static_cast<double>(from[at]);
            const double factor = 1.0 / std::sqrt(squares);
            for (std::int64_t at = 0; at < width; ++at)
                scaled->as<float>()[part * width + at] = static_cast<float>(static_cast<double>(from[at]) * factor);
        }
        own = std::move(scaled);
    }
    return own->view({1, question.heads, count, width}, {0, width, question.width, 1});
}

bool all_finite(const Tensor& heads) {
    const auto* first = heads.as<const float>();  // the rows lie together, whatever the view
    return std::all_of(first, first + heads.size(), [](float value) { return std::isfinite(value); });
}

Result<ForwardResult> ask(AttentionService& service, const Question& question, const ForwardInputs& inputs, bool scores,
                          const NamedValues& values) {
    ForwardOptions options;
    options.mechanism = question.options.mechanism;
    options.options = values;
    options.lse = true;
    options.scores = scores;
    options.precision = "fp32";
    Result<ForwardResult> result = service.forward(inputs, options);
    if (!result && result.error().code == ErrorCode::nonfinite)
        return refused(ErrorCode::nonfinite, result.error().message);
    return result;
}

Result<Logits> mean_over_rows(const Question& question, const std::vector<double>& logits) {
    const auto count = static_cast<std::size_t>(question.count), rows = static_cast<std::size_t>(question.rows);
    Logits means(static_cast<std::size_t>(question.heads) * count, 0.0);
    for (std::size_t head = 0; head < static_cast<std::size_t>(question.heads); ++head)
        for (std::size_t at = 0; at < count; ++at) {
            double sum = 0;
            for (std::size_t row = 0; row < rows; ++row) sum += logits[(head * rows + row) * count + at];
            means[head * count + at] = sum / static_cast<double>(rows);
            if (std::isnan(means[head * count + at]) || means[head * count + at] > std::numeric_limits<double>::max())
                return refused(ErrorCode::nonfinite, "the score of candidate " + std::to_string(at) +
                                                         " is not finite; accepted: finite scores");
        }
    return means;
}

// Of mechanisms that give no scores before softmax, from weights and the logarithms of their sums: ln(weight) + lse. Weights
// that underflow are asked for again with those hidden that are known.
Result<Logits> logits_of_weights(AttentionService& service, const Question& question, ForwardInputs inputs,
                                 const NamedValues& values) {
    const std::size_t count = static_cast<std::size_t>(question.count),
                      rows = static_cast<std::size_t>(question.heads * question.rows);
    std::vector<double> logits(rows * count, dropped);
    for (int pass = 0; pass < most_passes; ++pass) {
        Result<ForwardResult> result = ask(service, question, inputs, true, values);
        if (!result) return result.error();
        const Result<Tensor> weights = contiguous_copy(*result->scores), sums = contiguous_copy(*result->lse);
        if (!weights || !sums) return weights ? sums.error() : weights.error();
        if (weights->size() != static_cast<std::int64_t>(rows * count))
            return unsupported(question.mechanism, "has scores of shape " + shape_text(weights->shape) +
                                                       ", which are not those of the candidates");
        // Mixed weights have several sums and no common one: their logarithms are scores as good as any, once.
        const bool has_sums = sums->size() == static_cast<std::int64_t>(rows);
        bool learned = false, all = true;
        for (std::size_t row = 0; row < rows; ++row)
            for (std::size_t at = 0; at < count; ++at) {
                double& logit = logits[row * count + at];
                if (logit != dropped) continue;
                const auto weight = static_cast<double>(weights->as<const float>()[row * count + at]);
                if (std::isnan(weight)) logit = weight, learned = true;
                if (weight >= least_weight)
                    logit = std::log(weight) + (has_sums ? static_cast<double>(sums->as<const float>()[row]) : 0.0),
                    learned = true;
                all = all && logit != dropped;
            }
        if (all || !learned || !has_sums || !question.mechanism.has(ATTEND_CAP_MASK)) break;
        Result<Tensor> mask = Tensor::allocate(DType::boolean, {1, question.heads, question.rows, question.count});
        if (!mask) return mask.error();
        for (std::size_t at = 0; at < logits.size(); ++at) mask->as<std::uint8_t>()[at] = logits[at] == dropped ? 1 : 0;
        inputs.mask = std::move(*mask);
    }
    return mean_over_rows(question, logits);
}

Result<Logits> softmax_logits(AttentionService& service, const Question& question, ForwardInputs inputs,
                              const NamedValues& values) {
    // Values are not asked about.
    Result<Tensor> zeros = Tensor::allocate(DType::f32, {question.head_width()});
    if (!zeros) return zeros.error();
    inputs.value = zeros->view({1, question.heads, question.count, question.head_width()}, {0, 0, 0, 1});
    ForwardOptions options;
    options.mechanism = question.options.mechanism;
    options.options = values;
    options.precision = "fp32";
    Result<Tensor> given = service.attention_scores(inputs, options, ScoreStage::logits);
    if (given) given = contiguous_copy(*given);
    if (!given && given.error().code != ErrorCode::unsupported) return given.error();
    if (!given || given->shape != Shape{1, question.heads, question.rows, question.count})
        return logits_of_weights(service, question, inputs, values);
    const auto* first = given->as<const float>();
    return mean_over_rows(question, {first, first + given->size()});
}

// Of mechanisms with feature maps: phi(q).phi(k_j). With the rows of the unit matrix as values the output is what each
// candidate has of the sum, whose logarithm is the LSE.
Result<Logits> feature_logits(AttentionService& service, const Question& question, ForwardInputs inputs,
                              const NamedValues& values) {
    const std::size_t count = static_cast<std::size_t>(question.count),
                      rows = static_cast<std::size_t>(question.heads * question.rows);
    std::vector<double> products(rows * count), logarithms(rows);
    for (std::int64_t first = 0; first < question.count; first += value_columns) {
        const std::int64_t columns = std::min(value_columns, question.count - first);
        Result<Tensor> unit = Tensor::allocate(DType::f32, {question.count, columns});
        if (!unit) return unit.error();
        for (std::int64_t at = 0; at < columns; ++at) unit->as<float>()[(first + at) * columns + at] = 1.0f;
        inputs.value = unit->view({1, question.heads, question.count, columns}, {0, 0, columns, 1});
        Result<ForwardResult> result = ask(service, question, inputs, false, values);
        if (!result) return result.error();
        const Result<Tensor> output = contiguous_copy(result->output), sums = contiguous_copy(*result->lse);
        if (!output || !sums) return output ? sums.error() : output.error();
        for (std::size_t row = 0; row < rows; ++row) {
            logarithms[row] = static_cast<double>(sums->as<const float>()[row]);
            for (std::int64_t at = 0; at < columns; ++at)
                products[row * count + static_cast<std::size_t>(first + at)] =
                    static_cast<double>(output->as<const float>()[static_cast<std::int64_t>(row) * columns + at]);
        }
    }
    for (std::size_t row = 0; row < rows; ++row) {
        double* begin = products.data() + row * count;
        const double sum = std::accumulate(begin, begin + count, 0.0);
        const double factor = sum > 0 ? std::exp(logarithms[row]) / sum : 0.0;  // what guards the division is left out
        for (std::size_t at = 0; at < count; ++at) begin[at] *= factor;
    }
    return mean_over_rows(question, products);
}

enum class Kind { products, softmax, features, none };

// How the mechanism weighs its keys; `why` says it where it does not.
Kind kind_of(const Question& question, std::string& why) {
    const MechanismRecord& mechanism = question.mechanism;
    if (is_products(question)) return Kind::products;
    if (mechanism.has(ATTEND_CAP_GRAPH_INPUT))
        why = "needs a graph, which a list of candidates is not";
    else if (mechanism.built_in && mechanism.name == "synthesizer-attention")
        why = "makes its weights without looking at the keys";
    else if (mechanism.has(ATTEND_CAP_SCORES_OUT) && mechanism.has(ATTEND_CAP_LSE_OUT))
        return Kind::softmax;
    else if (mechanism.category == "linear" && mechanism.has(ATTEND_CAP_LSE_OUT))
        return Kind::features;
    else
        why = "has no weight for each key";
    return Kind::none;
}

// Core form; the request's scale among the options.
NamedValues forward_values(const Question& question, bool scaled) {
    NamedValues values = question.options.options;
    const auto add = [&](const char* name, Json value) {
        if (find_value(values, name) == nullptr) values.emplace_back(name, std::move(value));
    };
    if (question.mechanism.find_option("form") != nullptr) add("form", "core");
    if (scaled && question.options.scale && *question.options.scale != 0) {
        std::erase_if(values, [](const auto& entry) { return fold_name(entry.first) == "scale"; });
        add("scale", *question.options.scale);
    }
    return values;
}

// ---- From scores to an order ---------------------------------------------------------------------------------------

struct Ranked {
    double score, logit;
    std::int64_t index;
};

void order(std::vector<Ranked>& list, std::int64_t wanted) {
    const auto before = [](const Ranked& a, const Ranked& b) {
        if (a.score != b.score) return a.score > b.score;
        if (a.logit != b.logit) return a.logit > b.logit;
        return a.index < b.index;
    };
    const auto count = static_cast<std::int64_t>(list.size());
    if (wanted < count) {
        std::partial_sort(list.begin(), list.begin() + wanted, list.end(), before);
        list.resize(static_cast<std::size_t>(wanted));
    } else {
        std::sort(list.begin(), list.end(), before);
    }
}

// Weights of every head, their mean, the mean score.
std::vector<Ranked> scored(const Question& question, const Logits& logits, bool features) {
    const auto count = static_cast<std::size_t>(question.count);
    std::vector<Ranked> list(count);
    std::vector<double> weights(count);
    for (std::size_t at = 0; at < count; ++at) list[at].index = static_cast<std::int64_t>(at);
    for (std::int64_t head = 0; head < question.heads; ++head) {
        const double* row = logits.data() + static_cast<std::size_t>(head) * count;
        const double largest = *std::max_element(row, row + count);
        double sum = 0;
        for (std::size_t at = 0; at < count; ++at) {
            weights[at] = features ? row[at] : row[at] == dropped ? 0.0 : std::exp(row[at] - largest);
            sum += weights[at];
        }
        // Features that are all 0 prefer nobody.
        const double even = features ? 1.0 / static_cast<double>(count) : 0.0;
        for (std::size_t at = 0; at < count; ++at) {
            list[at].score += sum > 0 ? weights[at] / sum : even;
            list[at].logit += row[at];
        }
    }
    if (question.heads > 1)
        for (Ranked& entry : list) {
            entry.score /= static_cast<double>(question.heads);
            entry.logit /= static_cast<double>(question.heads);
        }
    return list;
}

Result<Tensor> as_rows(const Tensor& tensor, const char* name, const char* accepted) {
    if (!is_model_float(tensor.dtype))
        return refused(ErrorCode::dtype, std::string(name) + " has data type " + dtype_name(tensor.dtype) +
                                             "; accepted: F32, F16, BF16, F64");
    const bool vector = name == std::string_view("query") && tensor.rank() == 1;
    const bool nothing = tensor.rank() == 1 && tensor.shape[0] == 0;  // a list of no vectors
    if (tensor.rank() != 2 && !vector && !nothing)
        return refused(ErrorCode::shape,
                       std::string(name) + " has shape " + shape_text(tensor.shape) + "; accepted: " + accepted);
    Tensor rows = tensor;
    if (vector) rows = tensor.view({1, tensor.shape[0]}, {0, tensor.strides[0]});
    return rows;
}

Result<void> check_numbers(const RerankOptions& options, const Tensor& query, const Tensor& candidates) {
    const std::int64_t width = query.shape[1];
    if (query.shape[0] < 1 || width < 1)
        return refused(ErrorCode::shape,
                       "query has shape " + shape_text(query.shape) + "; accepted: at least one row and one column");
    if (candidates.rank() == 2 && candidates.shape[1] != width)
        return refused(ErrorCode::shape, "candidates have shape " + shape_text(candidates.shape) + ", the query has " +
                                             std::to_string(width) +
                                             " columns; accepted: candidates as wide as the query");
    if (options.heads < 1 || width % options.heads != 0)
        return refused(ErrorCode::option, "heads is " + std::to_string(options.heads) +
                                              "; accepted: a divisor of the width " + std::to_string(width));
    if (options.top_k < 0)
        return refused(ErrorCode::option,
                       "top_k is " + std::to_string(options.top_k) + "; accepted: at least 1, or 0 for all");
    if (options.scale && !std::isfinite(*options.scale))
        return refused(ErrorCode::option, "scale is " + std::to_string(*options.scale) + "; accepted: a finite number");
    const std::int64_t count = candidates.shape[0];
    if (!options.ids.empty() && static_cast<std::int64_t>(options.ids.size()) != count)
        return refused(ErrorCode::option, "ids are " + std::to_string(options.ids.size()) + " for " +
                                              std::to_string(count) + " candidates; accepted: one for each");
    return {};
}

}  // namespace

Result<Reranking> AttentionService::rerank(const Tensor& query, const Tensor& candidates,
                                           const RerankOptions& options) {
    const Result<Tensor> query_rows = as_rows(query, "query", "[D] or [Nq, D]");
    if (!query_rows) return query_rows.error();
    const Result<Tensor> rows = as_rows(candidates, "candidates", "[n, D]");
    if (!rows) return rows.error();
    if (auto done = check_numbers(options, *query_rows, *rows); !done) return done.error();
    const Result<MechanismPtr> mechanism = state_->registry.snapshot()->get(options.mechanism, "rerank");
    if (!mechanism) return mechanism.error();
    Reranking result;
    result.mechanism = (*mechanism)->name;
    Question question{**mechanism,   options, query_rows->shape[0], rows->shape[0], query_rows->shape[1],
                      options.heads, false};
    if (question.count == 0) return result;
    question.normalize = options.normalize == RerankOptions::Normalize::automatic
                             ? is_memory(**mechanism)
                             : options.normalize == RerankOptions::Normalize::on;
    std::string why;
    const Kind kind = kind_of(question, why);
    if (kind == Kind::none) return unsupported(**mechanism, why);
    Result<Logits> logits{Logits{}};
    if (kind == Kind::products) {
        const Result<ProductOptions> numbers = product_options(question);
        if (!numbers) return numbers.error();
        const Result<std::vector<double>> attn_scale = attn_scales(question);
        if (!attn_scale) return attn_scale.error();
        Result<Tensor> wide = convert(*query_rows, DType::f64);
        if (wide) wide = contiguous_copy(*wide);
        Result<Tensor> keys = rows->dtype == DType::f64 ? *rows : convert(*rows, DType::f32);
        if (keys) keys = contiguous_copy(*keys);
        if (!wide || !keys) return wide ? keys.error() : wide.error();
        const std::uint64_t isa = state_->machine->isa;
        logits = keys->dtype == DType::f64 ? product_logits(question, keys->as<const double>(), *wide, *numbers,
                                                            *attn_scale, double_row_products(isa))
                                           : product_logits(question, keys->as<const float>(), *wide, *numbers,
                                                            *attn_scale, float_row_products(isa));
    } else {
        ForwardInputs inputs;
        Result<Tensor> heads = as_heads(question, *query_rows), keys = as_heads(question, *rows);
        if (!heads || !keys) return heads ? keys.error() : heads.error();
        if (!all_finite(*heads) || !all_finite(*keys))
            return refused(ErrorCode::nonfinite, "query or candidates hold NaN or infinity; accepted: finite numbers");
        inputs.query = std::move(*heads);
        inputs.key = std::move(*keys);
        inputs.weights = options.weights;
        const NamedValues values = forward_values(question, kind == Kind::softmax);
        if (kind == Kind::features && options.scale)
            result.warnings.push_back("scale is given, which " + (*mechanism)->name +
                                      " does not read: it has a feature map");
        logits = kind == Kind::softmax ? softmax_logits(*this, question, std::move(inputs), values)
                                       : feature_logits(*this, question, std::move(inputs), values);
    }
    if (!logits) return logits.error();
    std::vector<Ranked> list = scored(question, *logits, kind == Kind::features);
    order(list, options.top_k == 0 ? question.count : options.top_k);
    result.results.resize(list.size());
    for (std::size_t rank = 0; rank < list.size(); ++rank) {
        RankedCandidate& to = result.results[rank];
        to.index = list[rank].index;
        to.score = list[rank].score;
        to.logit = list[rank].logit;
        to.rank = static_cast<std::int64_t>(rank);
        if (!options.ids.empty()) to.id = options.ids[static_cast<std::size_t>(to.index)];
    }
    return result;
}

Result<Reranking> AttentionService::rerank(const std::vector<float>& query,
                                           const std::vector<std::vector<float>>& candidates,
                                           const RerankOptions& options) {
    const auto width = static_cast<std::int64_t>(query.size());
    for (std::size_t at = 0; at < candidates.size(); ++at)
        if (candidates[at].size() != query.size())
            return refused(ErrorCode::shape, "candidate " + std::to_string(at) + " has " +
                                                 std::to_string(candidates[at].size()) + " numbers, the query has " +
                                                 std::to_string(width) + "; accepted: candidates as wide as the query");
    Result<Tensor> rows =
        Tensor::allocate(DType::f32, {static_cast<std::int64_t>(candidates.size()), width}, Tensor::Fill::none);
    if (!rows) return rows.error();
    float* to = rows->as<float>();
    for (const std::vector<float>& candidate : candidates) to = std::copy(candidate.begin(), candidate.end(), to);
    return rerank(Tensor::wrap(DType::f32, {width}, const_cast<float*>(query.data()), nullptr, true), *rows, options);
}

}  // namespace attend
