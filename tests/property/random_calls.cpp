// SPDX-License-Identifier: Apache-2.0
// Every mechanism against its oracle on random calls: seeded shapes, masks, biases, lengths, options and memory layouts
// together, the same calls on every instruction set. ATTEND_RANDOM_CALLS says how many for each mechanism, and
// ATTEND_TEST_MECHANISM names the one to run.
#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <limits>

#include "attend/config/names.hpp"
#include "specs/inputs.hpp"
#include "support/calls.hpp"
#include "support/effort.hpp"

namespace {

using namespace support;
using attend::ForwardInputs;
using attend::Json;
using attend::NamedValues;
using attend::Tensor;
using Extents = std::vector<std::int64_t>;

constexpr std::uint64_t usual_calls = support::watched ? 6 : 48;

const Json* find(const NamedValues& options, const std::string& name) {
    for (const auto& [given, value] : options)
        if (given == name) return &value;
    return nullptr;
}
bool is(const NamedValues& options, const char* name, const char* word) {
    const Json* value = find(options, name);
    return value != nullptr && value->is_string() && value->as_string() == word;
}

// One random call, and what it is in words.
struct RandomCall {
    NamedValues options{};
    ForwardInputs inputs{};
    bool lse{}, scores{};
    std::string text{};
};

class Maker {
public:
    Maker(const specs::Spec& spec, const attend::MechanismRecord& record, std::uint64_t seed)
        : spec_(spec), record_(record), seed_(seed), random_(seed * 977 + 5) {}

    RandomCall make() {
        if (!spec_.variants.empty() && !one_in(4)) call_.options = pick(spec_.variants);
        add_common_options();
        choose_shape();
        call_.inputs = make_inputs(spec_, random_, shape_);
        // Without key and value there is nothing that masks and lengths could speak of.
        const bool keyless = is(call_.options, "mode", "memory") && spec_.mechanism == "memory-attention";
        if (spec_.lengths && !keyless) add_lengths();
        if (!keyless) add_masks();
        specs::Numbers numbers(seed_ * 31 + 7);
        if (spec_.more) spec_.more(call_.inputs, call_.options, numbers);
        if (spec_.exempt.count("strides") == 0) rearrange();
        call_.lse = record_.has(ATTEND_CAP_LSE_OUT) && (!spec_.has_lse || spec_.has_lse(call_.options)) && one_in(2);
        call_.scores = record_.has(ATTEND_CAP_SCORES_OUT) && one_in(2);
        Json object = Json::object();
        for (const auto& [name, value] : call_.options) object.set(name, value);
        call_.text = "seed " + std::to_string(seed_) + ": " + shape_.text() + " " + attend::write_json(object) + words_;
        return std::move(call_);
    }

private:
    bool one_in(std::int64_t n) { return random_.below(n) == 0; }
    template <class T>
    const T& pick(const std::vector<T>& list) {
        return list[static_cast<std::size_t>(random_.below(static_cast<std::int64_t>(list.size())))];
    }
    bool given(const char* name) const { return find(call_.options, name) != nullptr; }
    void set(const char* name, Json value) { call_.options.emplace_back(name, std::move(value)); }

    // Those that the mechanism takes and the variant leaves open.
    void add_common_options() {
        if (is(call_.options, "mode", "memory")) return;
        if (spec_.causal && record_.has(ATTEND_CAP_CAUSAL) && !given("causal") && !given("local_causal") && one_in(2))
            set("causal", !one_in(4));
        if (record_.has(ATTEND_CAP_SOFTCAP) && !given("softcap") && one_in(4))
            set("softcap", 0.5 * static_cast<double>(1 + random_.below(6)));
        // A window of its own meaning belongs to the variants.
        const bool own = spec_.own_window, past = spec_.mechanism == "causal-self-attention";
        if (own || !record_.has(ATTEND_CAP_WINDOW) || given("window_left") || given("window_right") ||
            given("window_size") || !one_in(4))
            return;
        const std::int64_t kind = random_.below(past ? 2 : 4);
        if (kind == 0) set("window_size", 1 + random_.below(20));
        if (kind == 1 || kind == 2) set("window_left", random_.below(20));
        if (kind == 2 || kind == 3) set("window_right", random_.below(20));
    }

    // What a shape may cost the oracle, in inner steps of its loops.
    bool affordable() const {
        const Shape& s = shape_;
        const std::int64_t pairs = s.batch * s.heads * s.q_len * s.kv_len, width = s.heads * s.head_dim;
        if (is(call_.options, "mode", "xl") && width * width * (s.q_len + s.kv_len) > 700'000) return false;
        if (record_.has(ATTEND_CAP_ROUTED) && (width > 64 || width * width * s.batch * (s.q_len + s.kv_len) > 300'000))
            return false;
        if (spec_.mechanism == "memory-attention" && pairs * (s.head_dim + s.value_dim) > 250'000) return false;
        return pairs * (s.head_dim + s.value_dim) <= 2'000'000;
    }
    // Whether the variant can do with the shape: prefixes need so many keys, tables hold so many positions.
    bool fits() const {
        if (spec_.rows_on_axis && shape_.q_len > shape_.kv_len) return false;
        if (spec_.fits && !spec_.fits(call_.options, shape_.q_len, shape_.kv_len)) return false;
        const Json* components = find(call_.options, "components");
        const std::string listed = components != nullptr ? attend::write_json(*components) : "";
        if (listed.find("\"random\"") != std::string::npos || listed.find("factorized-random") != std::string::npos)
            if (shape_.q_len > shape_.kv_len) return false;
        const Json* prefix = find(call_.options, "prefix_length");
        if (prefix != nullptr && prefix->is_number() && prefix->as_int64() > shape_.kv_len) return false;
        const Json* factors = find(call_.options, "factors");
        if (factors != nullptr && factors->as_array()[0].as_int64() * factors->as_array()[1].as_int64() < shape_.kv_len)
            return false;
        if (is(call_.options, "mode", "xl") && !given("rel_dim") && shape_.heads * shape_.head_dim % 2 != 0)
            return false;
        const std::int64_t rotated = find(call_.options, "rope_dim") != nullptr ? 4 : 2;
        if (given("rope") && (shape_.head_dim % 2 != 0 || shape_.head_dim < rotated)) return false;
        const Json* residual = find(call_.options, "residual");
        const bool adds = residual != nullptr ? residual->as_bool() : spec_.adds_token;
        if (adds && shape_.head_dim != shape_.value_dim) return false;
        if (is(call_.options, "feature_map", "dpfp") && shape_.head_dim < 2) return false;
        const Json* longest = find(call_.options, "max_length");
        return longest == nullptr || std::max(shape_.q_len, shape_.kv_len) + 3 <= longest->as_int64();
    }
    std::int64_t some_length() {
        const std::int64_t kind = random_.below(8);
        return kind == 0  ? 1
               : kind < 4 ? 1 + random_.below(20)
               : kind < 7 ? 1 + random_.below(80)
                          : 1 + random_.below(200);
    }
    std::int64_t some_width() {
        if (spec_.odd_width && one_in(5)) return pick(Extents{1, 5, 7, 33, 65});
        return pick(Extents{8, 24, 64, 80, 128, 256});
    }
    void choose_shape() {
        do {
            shape_.batch = 1 + random_.below(3);
            shape_.heads = pick(Extents{1, 2, 3, 4, 6, 8});
            shape_.kv_heads = shape_.heads;
            if (spec_.gqa && one_in(2)) {
                Extents divisors;
                for (std::int64_t n = 1; n <= shape_.heads; ++n)
                    if (shape_.heads % n == 0) divisors.push_back(n);
                shape_.kv_heads = pick(divisors);
            }
            shape_.q_len = some_length();
            shape_.kv_len = spec_.cross && !one_in(3) ? some_length() : shape_.q_len;
            if (one_in(12)) shape_.q_len = spec_.cross ? 1 : shape_.q_len;
            shape_.head_dim = some_width();
            shape_.value_dim = one_in(3) ? some_width() : shape_.head_dim;
        } while (!affordable() || !fits());
    }

    void add_lengths() {
        const std::int64_t kind = random_.below(5);
        if (kind > 2) return;
        const std::int64_t batch = shape_.batch;
        const auto some = [&](std::int64_t most) {
            Extents list;
            for (std::int64_t b = 0; b < batch; ++b) list.push_back(one_in(3) ? most : random_.below(most + 1));
            return list;
        };
        Extents keys = some(shape_.kv_len), queries = some(shape_.q_len);
        // Tables of the synthesizer have no row before key 0.
        if (kind == 1 && (spec_.mechanism == "synthesizer-attention" || spec_.rows_on_axis))
            for (std::size_t b = 0; b < keys.size(); ++b) queries[b] = std::min(queries[b], keys[b]);
        const auto tensor = [&](const Extents& list) {
            if (one_in(2)) return support::lengths(list);
            Tensor narrow = Tensor::allocate(attend::DType::i32, {batch}).value();
            for (std::size_t b = 0; b < list.size(); ++b)
                narrow.as<std::int32_t>()[b] = static_cast<std::int32_t>(list[b]);
            return narrow;
        };
        if (kind != 2) call_.inputs.key_lengths = tensor(keys), words_ += " key_lengths";
        if (kind != 0) call_.inputs.query_lengths = tensor(queries), words_ += " query_lengths";
    }

    // Extents of a mask or bias, rank 4, sometimes 3 ([B,Nq,Nk]) or 2.
    Extents mask_shape(bool ranks) {
        const bool pairs = spec_.masks && !one_in(3);
        const std::int64_t rows = pairs ? shape_.q_len : 1;
        if (ranks && pairs && one_in(5)) return {shape_.batch, rows, shape_.kv_len};
        if (ranks && pairs && one_in(5)) return {rows, shape_.kv_len};
        const bool heads = spec_.exempt.count("head masks") == 0 && spec_.maps == 1 && !given("softmax_heads");
        // A call without queries has as many heads as its keys.
        const std::int64_t count = given("num_latents") ? shape_.kv_heads : shape_.heads;
        return {one_in(2) ? 1 : shape_.batch, heads && one_in(2) ? count : 1, rows, shape_.kv_len};
    }
    void add_masks() {
        if (!spec_.masks && !spec_.key_masks) return;
        if (one_in(2)) {
            Tensor mask = Tensor::allocate(attend::DType::boolean, mask_shape(true)).value();
            const std::int64_t hidden = 2 + random_.below(5);
            for (std::int64_t at = 0; at < mask.size(); ++at) mask.as<std::uint8_t>()[at] = !one_in(hidden);
            call_.inputs.mask = mask;
            words_ += " mask " + attend::shape_text(mask.shape);
        }
        if (spec_.biases && one_in(2)) {
            Tensor bias = normal(random_, mask_shape(false));
            const bool hides = one_in(2);
            for (std::int64_t at = 0; at < bias.size() && hides; ++at)
                if (one_in(8)) bias.as<float>()[at] = -std::numeric_limits<float>::infinity();
            call_.inputs.bias = bias;
            words_ += std::string(hides ? " hiding" : "") + " bias " + attend::shape_text(bias.shape);
        }
    }

    // The same elements in memory of another order, with gaps of `gap`, some axes backwards.
    Tensor rearranged(const Tensor& from) {
        const std::size_t rank = from.shape.size();
        if (from.size() == 0) return from;
        std::vector<std::size_t> order(rank);
        for (std::size_t axis = 0; axis < rank; ++axis) order[axis] = axis;
        std::shuffle(order.begin(), order.end(), random_.engine);
        std::int64_t step = 1 + random_.below(3), start = 0;
        Extents strides(rank);
        for (const std::size_t axis : order) {
            strides[axis] = one_in(3) ? -step : step;
            if (strides[axis] < 0) start += step * (from.shape[axis] - 1);
            step = step * from.shape[axis] + random_.below(4);
        }
        Tensor room = Tensor::allocate(from.dtype, {step + 1}).value();
        if (from.dtype == attend::DType::f32)
            std::fill_n(room.as<float>(), room.size(), std::numeric_limits<float>::quiet_NaN());
        const Tensor to = room.view(from.shape, strides, start), packed = attend::contiguous_copy(from).value();
        const std::size_t bytes = attend::dtype_size(from.dtype);
        Extents index(rank, 0);
        for (std::int64_t at = 0; at < packed.size(); ++at) {
            std::int64_t offset = 0;
            for (std::size_t axis = 0; axis < rank; ++axis) offset += index[axis] * strides[axis];
            std::memcpy(static_cast<char*>(to.data) + offset * static_cast<std::int64_t>(bytes),
                        static_cast<const char*>(packed.data) + static_cast<std::size_t>(at) * bytes, bytes);
            for (std::size_t axis = rank; axis-- > 0;) {
                if (++index[axis] < from.shape[axis]) break;
                index[axis] = 0;
            }
        }
        return to;
    }
    void rearrange() {
        ForwardInputs& in = call_.inputs;
        if (one_in(2)) {
            words_ += " strided";
            if (!in.query.shape.empty()) in.query = rearranged(in.query);
            for (auto* tensor : {&in.key, &in.value, &in.mask, &in.bias})
                if (*tensor && !one_in(4)) *tensor = rearranged(**tensor);
        }
        // One item's keys, values or biases for all.
        for (auto* tensor : {&in.key, &in.value, &in.mask, &in.bias}) {
            if (!*tensor || (*tensor)->shape.size() != 4 || !one_in(10)) continue;
            words_ += " shared over items";
            Tensor shared = **tensor;
            shared.strides[0] = 0;
            *tensor = shared;
        }
    }

    const specs::Spec& spec_;
    const attend::MechanismRecord& record_;
    std::uint64_t seed_;
    Random random_;
    Shape shape_{};
    RandomCall call_{};
    std::string words_{};
};

// Whether all of `got` is within `tolerance` (1 + |expected|) of what is expected.
void compare(const std::vector<float>& got, const std::vector<double>& expected, double tolerance, double scale) {
    REQUIRE(got.size() == expected.size());
    double worst = 0.0;
    std::size_t where = 0;
    for (std::size_t at = 0; at < got.size(); ++at) {
        const double g = static_cast<double>(got[at]), e = expected[at];
        double now = g == e ? 0.0 : std::abs(g - e) / (scale > 0.0 ? scale : 1.0 + std::abs(e));
        if (std::isnan(now)) now = std::numeric_limits<double>::infinity();
        if (now > worst) worst = now, where = at;
    }
    INFO("index " << where << " of " << got.size() << ": difference " << worst);
    CHECK(worst <= tolerance);
}

// The same weights, to the bit, in windows of five rows.
void check_rows(attend::AttentionService& engine, const ForwardInputs& in, const attend::ForwardOptions& asked,
                const Tensor& scores) {
    const std::int64_t rows = scores.shape[scores.shape.size() - 2];
    attend::WeightRequest request;
    request.full = true;
    request.chunk_bytes = rows == 0 ? 1 : static_cast<std::uint64_t>(scores.size() / rows) * sizeof(float) * 5;
    const auto got = engine.attention_weights(in, asked, request);
    if (!got) {
        FAIL_CHECK(got.error().message);
        return;
    }
    CHECK((got->full->byte_size() == scores.byte_size() &&
           (scores.size() == 0 || std::memcmp(got->full->data, scores.data, scores.byte_size()) == 0)));
}

void check(const specs::Spec& spec, const RandomCall& call, const std::vector<std::string>& sets) {
    INFO(spec.mechanism << " " << call.text);
    attend::ForwardOptions asked;
    asked.mechanism = spec.mechanism;
    asked.options = call.options;
    asked.lse = call.lse;
    asked.scores = call.scores;
    specs::Expected expected;
    const ForwardInputs& in = call.inputs;
    const Tensor& values_read = in.value ? *in.value : in.key ? *in.key : in.query;
    const double scale = 1.0 + largest(values(values_read)), tolerance = std::max(1e-5, spec.tolerance);
    bool first = true;
    for (const std::string& set : sets) {
        INFO("on " << set);
        const auto result = service(set).forward(in, asked);
        if (!result) {
            FAIL_CHECK(result.error().message);
            return;
        }
        if (first) expected = spec.oracle({&in, result->options()});
        first = false;
        CHECK(result->backend == set);
        compare(values(result->output), expected.o, tolerance, scale);
        if (call.lse && !expected.lse.empty()) compare(values(*result->lse), expected.lse, tolerance, 0.0);
        if (call.scores && !expected.p.empty()) compare(values(*result->scores), expected.p, tolerance, 0.0);
        if (call.scores) check_rows(service(set), in, asked, *result->scores);
    }
}

void check_category(const std::string& category) {
    const char* only = std::getenv("ATTEND_TEST_MECHANISM");
    const char* wanted = std::getenv("ATTEND_RANDOM_CALLS");
    const std::uint64_t calls = wanted != nullptr ? std::strtoull(wanted, nullptr, 10) : usual_calls;
    const std::vector<std::string> sets = backends();
    for (const auto& mechanism : service().registry()->by_category(category)) {
        if (only != nullptr && mechanism->name != only) continue;
        const specs::Spec& spec = specs::spec_of(mechanism->name);
        for (std::uint64_t seed = 1; seed <= calls; ++seed) check(spec, Maker(spec, *mechanism, seed).make(), sets);
        std::cout << mechanism->name << ": " << calls << " random calls on " << sets.size() << " instruction sets\n";
    }
}

}  // namespace

TEST_CASE("multi-head mechanisms match their oracles on random calls") { check_category("multi-head"); }
TEST_CASE("self-attention mechanisms match their oracles on random calls") { check_category("self-attention"); }
TEST_CASE("cross-attention mechanisms match their oracles on random calls") { check_category("cross-attention"); }
TEST_CASE("sparse mechanisms match their oracles on random calls") { check_category("sparse"); }
TEST_CASE("linear mechanisms match their oracles on random calls") { check_category("linear"); }
TEST_CASE("flash mechanisms match their oracles on random calls") { check_category("flash"); }
TEST_CASE("moe mechanisms match their oracles on random calls") { check_category("moe"); }
TEST_CASE("other mechanisms match their oracles on random calls") { check_category("extra"); }
