// SPDX-License-Identifier: Apache-2.0
// Dense attention with a term of the distance, looked up or computed for every pair.
#include "specs/spec.hpp"

namespace {

using attend::Tensor;

const Tensor* find(const std::vector<std::pair<std::string, Tensor>>& list, const char* name) {
    for (const auto& [given, tensor] : list)
        if (given == name) return &tensor;
    return nullptr;
}
double number(const Tensor& tensor, std::int64_t at) { return static_cast<double>(tensor.as<const float>()[at]); }

std::int64_t bucket_of(std::int64_t delta, std::int64_t buckets, double most, bool both) {
    const std::int64_t nb = both ? buckets / 2 : buckets, base = both && delta > 0 ? nb : 0,
                       n = both ? std::abs(delta) : std::max<std::int64_t>(-delta, 0), e = nb / 2;
    if (n < e) return base + n;
    const auto ratio =
        std::log(static_cast<double>(n) / static_cast<double>(e)) / std::log(most / static_cast<double>(e));
    return base +
           std::min(nb - 1, e + static_cast<std::int64_t>(std::floor(1e-9 + ratio * static_cast<double>(nb - e))));
}

specs::Expected relative(const specs::Call& call) {
    oracle::Dense x = specs::problem_of(call, specs::everywhere, true, true);
    const std::string mode = call.word("mode");
    const auto position = [&call](std::int64_t b, std::int64_t i) { return i + specs::offset_of(call, b); };
    if (mode == "shaw") {
        const auto k = static_cast<std::int64_t>(call.number("max_distance", 16));
        const Tensor *keys = find(call.inputs->weights, "rel_k"), *values = find(call.inputs->weights, "rel_v");
        const auto at = [=](const Tensor& table, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j,
                            std::int64_t d, std::int64_t width) {
            const std::int64_t r = std::clamp(j - position(b, i), -k, k) + k, head = table.shape[0] == 1 ? 0 : h;
            return number(table, (head * (2 * k + 1) + r) * width + d);
        };
        x.content = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            double sum = 0;
            for (std::int64_t d = 0; d < x.head_dim; ++d) sum += x.q(b, h, i, d) * at(*keys, b, h, i, j, d, x.head_dim);
            return sum;
        };
        if (values != nullptr)
            x.value = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j, std::int64_t d) {
                return at(*values, b, h, i, j, d, x.value_dim);
            };
    } else if (mode == "t5") {
        const Tensor* table = find(call.inputs->weights, "rel_bias");
        const bool both = call.optional_given("bidirectional") ? call.flag("bidirectional") : !call.flag("causal");
        const auto buckets = static_cast<std::int64_t>(call.number("num_buckets", 32));
        const double most = call.number("max_distance", 128);
        const auto user = x.bias;
        x.bias = [=](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            return number(*table, bucket_of(j - position(b, i), buckets, most, both) * x.q_heads + h) +
                   (user ? user(b, h, i, j) : 0.0);
        };
    } else {
        const Tensor *proj = find(call.inputs->weights, "rel_proj"), *u = find(call.inputs->weights, "u"),
                     *v = find(call.inputs->weights, "v"), *seg_u = find(call.inputs->weights, "seg_u"),
                     *seg_emb = find(call.inputs->weights, "seg_emb"),
                     *ids_q = find(call.inputs->extra, "segment_ids_q"),
                     *ids_k = find(call.inputs->extra, "segment_ids_k");
        const std::int64_t width = proj->shape[2];
        const auto clamp = static_cast<std::int64_t>(call.number("clamp_len", -1));
        const auto r = [=](std::int64_t h, std::int64_t d, std::int64_t distance) {
            double sum = 0;
            for (std::int64_t e = 0; e < width; ++e) {
                const std::int64_t t = e % (width / 2);
                const double angle = static_cast<double>(distance) *
                                     std::pow(10000.0, -2.0 * static_cast<double>(t) / static_cast<double>(width));
                sum += number(*proj, (h * x.head_dim + d) * width + e) *
                       (e < width / 2 ? std::sin(angle) : std::cos(angle));
            }
            return sum;
        };
        // R of every head and distance, once.
        std::map<std::pair<std::int64_t, std::int64_t>, std::vector<double>> known;
        for (std::int64_t b = 0; b < x.batch; ++b)
            for (std::int64_t h = 0; h < x.q_heads; ++h)
                for (std::int64_t i = 0; i < x.q_len; ++i)
                    for (std::int64_t j = 0; j < x.kv_len; ++j) {
                        std::int64_t distance = position(b, i) - j;
                        if (clamp > 0) distance = std::clamp(distance, -clamp, clamp);
                        auto& row = known[{h, distance}];
                        if (!row.empty()) continue;
                        for (std::int64_t d = 0; d < x.head_dim; ++d) row.push_back(r(h, d, distance));
                    }
        x.content = [=, known = std::move(known)](std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
            std::int64_t distance = position(b, i) - j;
            if (clamp > 0) distance = std::clamp(distance, -clamp, clamp);
            const std::vector<double>& row = known.at({h, distance});
            double sum = 0;
            for (std::int64_t d = 0; d < x.head_dim; ++d) {
                const std::int64_t at = h * x.head_dim + d;
                sum += number(*u, at) * x.k(b, h * x.kv_heads / x.q_heads, j, d) +
                       (x.q(b, h, i, d) + number(*v, at)) * row[static_cast<std::size_t>(d)];
                if (ids_q == nullptr) continue;
                const bool same = ids_q->as<const std::int32_t>()[b * x.q_len + i] ==
                                  ids_k->as<const std::int32_t>()[b * x.kv_len + j];
                sum += (x.q(b, h, i, d) + number(*seg_u, at)) *
                       number(*seg_emb, ((same ? 0 : 1) * x.q_heads + h) * x.head_dim + d);
            }
            return sum;
        };
    }
    return specs::solved(x);
}

void more(attend::ForwardInputs& inputs, const attend::NamedValues& options, specs::Numbers& numbers) {
    std::string mode = "shaw";
    std::int64_t distance = 16, buckets = 32, rel_dim = 0;
    bool values = true, per_head = false, segments = false;
    for (const auto& [name, value] : options) {
        if (name == "mode") mode = value.as_string();
        if (name == "max_distance") distance = value.as_int64();
        if (name == "num_buckets") buckets = value.as_int64();
        if (name == "rel_dim") rel_dim = value.as_int64();
        if (name == "use_value_embedding") values = value.as_bool();
        if (name == "per_head_tables") per_head = value.as_bool();
        if (name == "weight_seed") segments = true;  // stands for: with segments
    }
    const std::int64_t batch = inputs.query.shape[0], heads = inputs.query.shape[1], width = inputs.query.shape[3],
                       tables = per_head ? heads : 1;
    if (mode == "shaw") {
        inputs.weights.emplace_back("rel_k", numbers.normal({tables, 2 * distance + 1, width}));
        if (values)
            inputs.weights.emplace_back("rel_v", numbers.normal({tables, 2 * distance + 1, inputs.value->shape[3]}));
    } else if (mode == "t5") {
        inputs.weights.emplace_back("rel_bias", numbers.normal({buckets, heads}));
    } else {
        Tensor proj = numbers.normal({heads, width, rel_dim > 0 ? rel_dim : heads * width});
        for (std::int64_t at = 0; at < proj.size(); ++at) proj.as<float>()[at] *= 0.2f;
        inputs.weights.emplace_back("rel_proj", std::move(proj));
        inputs.weights.emplace_back("u", numbers.normal({heads, width}));
        inputs.weights.emplace_back("v", numbers.normal({heads, width}));
        if (!segments) return;
        inputs.weights.emplace_back("seg_u", numbers.normal({heads, width}));
        inputs.weights.emplace_back("seg_emb", numbers.normal({2, heads, width}));
        for (const char* name : {"segment_ids_q", "segment_ids_k"}) {
            const std::int64_t n = name[12] == 'q' ? inputs.query.shape[2] : inputs.key->shape[2];
            Tensor ids = Tensor::allocate(attend::DType::i32, {batch, n}).value();
            for (std::int64_t at = 0; at < ids.size(); ++at)
                ids.as<std::int32_t>()[at] = static_cast<std::int32_t>(numbers.below(3));
            inputs.extra.emplace_back(name, std::move(ids));
        }
    }
}

const specs::Registration spec(
    {.mechanism = "relative-position-attention",
     .oracle = relative,
     .variants = {{{"max_distance", 3}},
                  {{"max_distance", 0}},
                  {{"max_distance", 40}, {"softcap", 2.0}},
                  {{"use_value_embedding", false}, {"causal", true}},
                  {{"per_head_tables", true}, {"max_distance", 5}},
                  {{"max_distance", 4}, {"dropout", 0.3}, {"seed", 5}},
                  {{"mode", "t5"}},
                  {{"mode", "t5"}, {"causal", true}},
                  {{"mode", "t5"}, {"num_buckets", 8}, {"max_distance", 11}},
                  {{"mode", "t5"}, {"bidirectional", false}, {"num_buckets", 7}, {"max_distance", 20}},
                  {{"mode", "xl"}},
                  {{"mode", "xl"}, {"rel_dim", 6}, {"causal", true}},
                  {{"mode", "xl"}, {"clamp_len", 4}, {"scale", 0.3}},
                  {{"mode", "xl"}, {"weight_seed", 1}},
                  {{"mode", "xl"}, {"window_size", 7}, {"causal_alignment", "top-left"}}},
     .exempt = {{"ones", "vectors join the values"}, {"scores", "vectors join the values"}},
     .tolerance = 2e-5,
     .more = more});

}  // namespace
