// SPDX-License-Identifier: Apache-2.0
// Properties of every registered mechanism, on every instruction set that the machine can run, through the real plugin
// files. No list by hand: a mechanism without a spec fails.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <set>

#include "attend/config/names.hpp"
#include "specs/inputs.hpp"
#include "support/calls.hpp"

namespace {

using namespace support;
using attend::ForwardInputs;
using attend::Json;
using attend::NamedValues;
using attend::Tensor;
using specs::completed;
using specs::make_inputs;
using specs::spec_of;

// All of them, or the one that ATTEND_TEST_MECHANISM names: while it is being written, or of another build.
const char* only_mechanism() { return std::getenv("ATTEND_TEST_MECHANISM"); }
std::vector<attend::MechanismPtr> mechanisms() {
    std::vector<attend::MechanismPtr> list = service().registry()->list();
    if (const char* only = only_mechanism())
        std::erase_if(list, [&](const attend::MechanismPtr& mechanism) { return mechanism->name != only; });
    return list;
}

// The rows of a [B,H,N,D] tensor without gaps that `which` names.
template <class Which>
void set_rows(Tensor& tensor, float value, Which which) {
    const auto& s = tensor.shape;
    for (std::int64_t row = 0; row < s[0] * s[1] * s[2]; ++row)
        if (which(row / s[2] / s[1], row % s[2])) std::fill_n(tensor.as<float>() + row * s[3], s[3], value);
}

std::string shown(const NamedValues& options) {
    Json object = Json::object();
    for (const auto& [name, value] : options) object.set(name, value);
    return attend::write_json(object);
}

std::vector<NamedValues> variants(const specs::Spec& spec) {
    std::vector<NamedValues> all{{}};
    all.insert(all.end(), spec.variants.begin(), spec.variants.end());
    return all;
}

std::vector<Shape> shapes(const specs::Spec& spec) {
    std::vector<Shape> list{{1, 1, 1, 7, 7, 8, 8},     {1, 2, 2, 16, 16, 16, 16}, {2, 3, 3, 17, 17, 5, 5},
                            {1, 2, 2, 48, 48, 32, 32}, {1, 1, 1, 49, 49, 64, 64}, {1, 2, 2, 130, 130, 24, 24}};
    if (spec.cross)
        list.insert(list.end(), {{2, 2, 2, 1, 33, 16, 16}, {1, 2, 2, 5, 129, 16, 16}, {1, 1, 1, 40, 9, 8, 8}});
    if (spec.gqa) list.insert(list.end(), {{1, 4, 2, 19, 19, 16, 16}, {2, 6, 1, 3, 3, 8, 8}});
    list.push_back({1, 2, 2, 20, 20, 12, 7});
    if (spec.rows_on_axis) std::erase_if(list, [](const Shape& shape) { return shape.q_len > shape.kv_len; });
    if (spec.adds_token) std::erase_if(list, [](const Shape& shape) { return shape.head_dim != shape.value_dim; });
    if (spec.fits) std::erase_if(list, [&](const Shape& shape) { return !spec.fits({}, shape.q_len, shape.kv_len); });
    if (!spec.odd_width) std::erase_if(list, [](const Shape& shape) { return shape.head_dim % 2 != 0; });
    return list;
}

// The options that a variant may not combine with a shape: global positions and prefixes need so many keys.
bool fits(const NamedValues& options, const Shape& shape) {
    for (const auto& [name, value] : options)
        if ((name == "prefix_length") && value.is_number() && value.as_int64() > shape.kv_len) return false;
    return true;
}

void check_against_oracle(attend::AttentionService& engine, const specs::Spec& spec, const ForwardInputs& given,
                          const NamedValues& options) {
    const ForwardInputs inputs = completed(spec, given, options);
    const auto& record = *engine.registry()->find(spec.mechanism);
    const bool lse = record.has(ATTEND_CAP_LSE_OUT) && (!spec.has_lse || spec.has_lse(options)),
               scores = record.has(ATTEND_CAP_SCORES_OUT);
    const attend::ForwardResult got = run(engine, inputs, spec.mechanism, options, lse, scores);
    const specs::Expected expected = spec.oracle({&inputs, got.options()});
    const double scale = std::max(1.0, largest(values(inputs.value ? *inputs.value
                                                      : inputs.key ? *inputs.key
                                                                   : inputs.query)));
    std::size_t where = 0;
    const double worst = difference(values(got.output), expected.o, &where);
    INFO("first bad index " << where << ", got "
                            << (values(got.output).empty()
                                    ? 0.0f
                                    : values(got.output)[std::min(where, values(got.output).size() - 1)]));
    CHECK(worst <= spec.tolerance * scale);
    if (lse && !expected.lse.empty()) CHECK(difference(values(*got.lse), expected.lse) <= 2e-5);
    if (scores && !expected.p.empty()) CHECK(difference(values(*got.scores), expected.p) <= 4e-6);
}

// Calls `body` for every mechanism and instruction set.
template <class Body>
void for_all(const char* property, Body body) {
    std::size_t ran = 0;
    for (const std::string& backend : backends())
        for (const auto& mechanism : mechanisms()) {
            const specs::Spec& spec = spec_of(mechanism->name);
            if (spec.exempt.count(property) != 0) continue;  // the spec says why
            INFO(mechanism->name << " on " << backend);
            body(service(backend), spec);
            ++ran;
        }
    // A single one may be exempt.
    CHECK((ran > 0 || only_mechanism() != nullptr));
}

Tensor random_mask(Random& random, std::vector<std::int64_t> shape) {
    Tensor mask = Tensor::allocate(attend::DType::boolean, std::move(shape)).value();
    for (std::int64_t at = 0; at < mask.size(); ++at) mask.as<std::uint8_t>()[at] = random.below(4) != 0;
    return mask;
}

}  // namespace

TEST_CASE("every registered mechanism has a spec, and every spec a mechanism") {
    std::set<std::string> registered;
    for (const auto& mechanism : mechanisms()) registered.insert(mechanism->name);
    for (const specs::Spec& spec : specs::all())
        if (only_mechanism() == nullptr || spec.mechanism == only_mechanism())
            CHECK(registered.count(spec.mechanism) == 1);
    for (const std::string& name : registered) CHECK(spec_of(name).mechanism == name);
}

TEST_CASE("each instruction set really runs") {
    for (const std::string& backend : backends()) {
        std::size_t count = 0;
        for (const auto& mechanism : mechanisms()) {
            Random random(1);
            const auto result =
                run(service(backend), make_inputs(spec_of(mechanism->name), random, {1, 2, 2, 9, 9, 8, 8}),
                    mechanism->name);
            CHECK(result.backend == backend);
            ++count;
        }
        std::cout << "instruction set " << backend << ": " << count << " mechanisms ran on it\n";
    }
}

TEST_CASE("output matches the oracle on awkward shapes") {
    for_all("oracle", [](attend::AttentionService& engine, const specs::Spec& spec) {
        std::uint64_t seed = 11;
        for (const Shape& shape : shapes(spec)) {
            Random random(++seed);
            INFO(shape.text());
            check_against_oracle(engine, spec, make_inputs(spec, random, shape), {});
        }
    });
}

TEST_CASE("every option variant matches the oracle") {
    for_all("oracle", [](attend::AttentionService& engine, const specs::Spec& spec) {
        std::uint64_t seed = 100;
        for (const NamedValues& options : variants(spec))
            for (const Shape& shape :
                 {Shape{1, 2, 2, 19, 19, 8, 8}, Shape{2, 2, 1, 50, 50, 16, 16}, Shape{1, 1, 1, 6, 23, 8, 8}}) {
                if ((shape.q_len != shape.kv_len && !spec.cross) || (shape.kv_heads != shape.heads && !spec.gqa) ||
                    !fits(options, shape) || (spec.fits && !spec.fits(options, shape.q_len, shape.kv_len)))
                    continue;
                Random random(++seed);
                INFO(shape.text() << " options " << shown(options) << " seed " << seed);
                check_against_oracle(engine, spec, make_inputs(spec, random, shape), options);
            }
    });
}

TEST_CASE("masks and biases match the oracle") {
    for_all("oracle", [](attend::AttentionService& engine, const specs::Spec& spec) {
        Random random(5);
        const std::int64_t n = 37;
        for (const bool per_pair : {true, false}) {
            if (per_pair ? !spec.masks : !spec.key_masks) continue;
            const std::int64_t rows = per_pair ? n : 1;
            for (const auto& lead : std::vector<std::vector<std::int64_t>>{{1, 1}, {2, 1}, {2, 2}}) {
                if (spec.exempt.count("head masks") != 0 && lead[1] != 1) continue;
                ForwardInputs inputs = make_inputs(spec, random, {2, 2, 2, n, n, 8, 8});
                inputs.mask = random_mask(random, {lead[0], lead[1], rows, n});
                check_against_oracle(engine, spec, inputs, {});
                if (!spec.biases) continue;
                inputs.bias = normal(random, {lead[0], lead[1], rows, n});
                inputs.bias->as<float>()[3] = -std::numeric_limits<float>::infinity();
                check_against_oracle(engine, spec, inputs, {});
            }
            if (per_pair) {
                ForwardInputs inputs = make_inputs(spec, random, {2, 2, 2, n, n, 8, 8});
                inputs.mask = random_mask(random, {2, n, n});  // rank 3 is [B, Nq, Nk]
                check_against_oracle(engine, spec, inputs, {});
                inputs.mask = random_mask(random, {n, n});
                check_against_oracle(engine, spec, inputs, {});
            }
        }
    });
}

TEST_CASE("lengths match the oracle, and move the diagonal only together") {
    for_all("oracle", [](attend::AttentionService& engine, const specs::Spec& spec) {
        Random random(6);
        for (const bool causal : {false, true}) {
            if (causal && !spec.causal) continue;
            const NamedValues options = causal ? NamedValues{{"causal", true}} : NamedValues{};
            ForwardInputs inputs = make_inputs(spec, random, {3, 2, 2, 21, 21, 8, 8});
            inputs.key_lengths = lengths({21, 7, 0});
            check_against_oracle(engine, spec, inputs, options);
            inputs.query_lengths = spec.rows_on_axis ? lengths({5, 7, 0}) : lengths({5, 21, 3});
            check_against_oracle(engine, spec, inputs, options);
            inputs.key_lengths.reset();
            check_against_oracle(engine, spec, inputs, options);
        }
    });
}

TEST_CASE("strides do not matter") {
    for_all("strides", [](attend::AttentionService& engine, const specs::Spec& spec) {
        Random random(7);
        const ForwardInputs plain = make_inputs(spec, random, {2, 3, 3, 18, 18, 8, 8});
        const auto expected = run(engine, plain, spec.mechanism);
        ForwardInputs other = plain;
        const auto rearranged = [](const Tensor& from, int way) {
            const auto& s = from.shape;
            // 0: [B,N,H,D] in memory; 1: innermost stride 2; 2: every axis backwards
            Tensor room = Tensor::allocate(attend::DType::f32, {from.size() * 2}).value();
            for (std::int64_t at = 0; at < room.size(); ++at)
                room.as<float>()[at] = std::numeric_limits<float>::quiet_NaN();
            Tensor view = way == 0   ? room.view(s, {s[1] * s[2] * s[3], s[3], s[1] * s[3], 1})
                          : way == 1 ? room.view(s, {2 * s[1] * s[2] * s[3], 2 * s[2] * s[3], 2 * s[3], 2})
                                     : room.view(s, {-s[1] * s[2] * s[3], -s[2] * s[3], -s[3], -1}, from.size() - 1);
            for (std::int64_t b = 0; b < s[0]; ++b)
                for (std::int64_t h = 0; h < s[1]; ++h)
                    for (std::int64_t n = 0; n < s[2]; ++n)
                        for (std::int64_t d = 0; d < s[3]; ++d)
                            view.as<float>()[b * view.strides[0] + h * view.strides[1] + n * view.strides[2] +
                                             d * view.strides[3]] =
                                from.as<const float>()[b * from.strides[0] + h * from.strides[1] + n * from.strides[2] +
                                                       d * from.strides[3]];
            return view;
        };
        for (int way = 0; way < 3; ++way) {
            other.query = rearranged(plain.query, way);
            other.key = rearranged(*plain.key, (way + 1) % 3);
            other.value = rearranged(*plain.value, (way + 2) % 3);
            const auto got = run(engine, other, spec.mechanism);
            const auto reference = values(expected.output);
            CHECK(difference(values(got.output), {reference.begin(), reference.end()}) <=
                  2e-6 * std::max(1.0, largest(values(*plain.value))));
        }
    });
}

TEST_CASE("values of hidden keys do not matter, not even NaN") {
    for_all("hidden keys", [](attend::AttentionService& engine, const specs::Spec& spec) {
        for (const float poison :
             {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), 1e30f}) {
            Random random(8);
            const std::int64_t n = 53;
            ForwardInputs inputs = make_inputs(spec, random, {2, 2, 2, n, n, 8, 8});
            inputs.key_lengths = lengths({n, 20});
            Tensor mask = random_mask(random, {1, 1, 1, n});
            inputs.mask = mask;
            const auto clean = run(engine, inputs, spec.mechanism);
            for (Tensor* tensor : {&*inputs.key, &*inputs.value})
                set_rows(*tensor, poison, [&](std::int64_t b, std::int64_t j) {
                    return mask.as<std::uint8_t>()[j] == 0 || (b == 1 && j >= 20);
                });
            const auto got = run(engine, inputs, spec.mechanism);
            const auto reference = values(clean.output);
            CHECK(difference(values(got.output), {reference.begin(), reference.end()}) <= 1e-6);
        }
    });
}

TEST_CASE("causal output ignores the future bit for bit") {
    for_all("causal future", [](attend::AttentionService& engine, const specs::Spec& spec) {
        const bool always = spec.mechanism == "causal-self-attention";
        if (!spec.causal && !always) return;
        Random random(9);
        const std::int64_t n = 70, cut = 41;
        ForwardInputs inputs = make_inputs(spec, random, {1, 2, 2, n, n, 8, 8});
        const auto before = values(run(engine, inputs, spec.mechanism, {{"causal", true}}).output);
        const auto future = [](std::int64_t, std::int64_t j) { return j >= cut; };
        set_rows(*inputs.key, std::numeric_limits<float>::quiet_NaN(), future);
        set_rows(*inputs.value, 1e20f, future);
        const auto after = values(run(engine, inputs, spec.mechanism, {{"causal", true}}).output);
        bool same = true;
        for (std::int64_t h = 0; h < 2; ++h)
            same = same && std::memcmp(&before[static_cast<std::size_t>(h * n * 8)],
                                       &after[static_cast<std::size_t>(h * n * 8)],
                                       static_cast<std::size_t>(cut * 8) * sizeof(float)) == 0;
        CHECK(same);
    });
}

TEST_CASE("values of one give outputs of one") {
    for_all("ones", [](attend::AttentionService& engine, const specs::Spec& spec) {
        Random random(10);
        ForwardInputs inputs = make_inputs(spec, random, {1, 2, 2, 30, 30, 8, 8});
        std::fill_n(inputs.value->as<float>(), inputs.value->size(), 1.0f);
        for (const float x : values(run(engine, inputs, spec.mechanism).output)) CHECK(std::abs(x - 1.0f) <= 1e-5f);
    });
}

TEST_CASE("rows without keys are zero with LSE minus infinity") {
    for_all("empty rows", [](attend::AttentionService& engine, const specs::Spec& spec) {
        Random random(12);
        ForwardInputs inputs = make_inputs(spec, random, {2, 2, 2, 20, 20, 8, 8});
        inputs.key_lengths = lengths({0, 20});
        const bool lse =
            engine.registry()->find(spec.mechanism)->has(ATTEND_CAP_LSE_OUT) && (!spec.has_lse || spec.has_lse({}));
        const auto got = run(engine, inputs, spec.mechanism, {}, lse);
        const auto out = values(got.output);
        for (std::size_t at = 0; at < out.size() / 2; ++at) CHECK(out[at] == 0.0f);
        if (lse)
            for (std::size_t at = 0; at < 40; ++at)
                CHECK(values(*got.lse)[at] == -std::numeric_limits<float>::infinity());
    });
}

TEST_CASE("empty tensors give empty or zero outputs") {
    for_all("empty tensors", [](attend::AttentionService& engine, const specs::Spec& spec) {
        Random random(13);
        for (const Shape& shape : {Shape{0, 2, 2, 4, 4, 8, 8}, Shape{1, 2, 2, 0, 0, 8, 8}, Shape{2, 1, 1, 3, 0, 8, 8},
                                   Shape{1, 1, 1, 0, 5, 8, 8}}) {
            if (shape.q_len != shape.kv_len && !spec.cross) continue;
            if (spec.fits && !spec.fits({}, shape.q_len, shape.kv_len)) continue;
            INFO(shape.text());
            const auto got = run(engine, make_inputs(spec, random, shape), spec.mechanism);
            CHECK(got.output.shape ==
                  std::vector<std::int64_t>{shape.batch, shape.heads, shape.q_len, shape.value_dim});
            for (const float x : values(got.output)) CHECK(x == 0.0f);
        }
    });
}

TEST_CASE("1, 2 and 7 threads give the same bits") {
    for (const std::string& backend : backends())
        for (const auto& mechanism : mechanisms()) {
            const specs::Spec& spec = spec_of(mechanism->name);
            INFO(mechanism->name << " on " << backend);
            for (const Shape& shape : {Shape{2, 2, 2, 190, 190, 16, 16}, Shape{1, 1, 1, 1, 1, 4, 4}}) {
                Random random(14);
                const ForwardInputs inputs = completed(spec, make_inputs(spec, random, shape), {});
                const auto one = run(service(backend, 1), inputs, spec.mechanism);
                for (const int threads : {2, 7})
                    CHECK(same_bits(one.output, run(service(backend, threads), inputs, spec.mechanism).output));
            }
        }
}

TEST_CASE("instruction sets agree within the contract") {
    const auto sets = backends();
    for (const auto& mechanism : mechanisms()) {
        Random random(15);
        const specs::Spec& spec = spec_of(mechanism->name);
        const ForwardInputs inputs = completed(spec, make_inputs(spec, random, {1, 2, 2, 65, 65, 32, 32}), {});
        const auto reference = values(run(service(sets.front()), inputs, mechanism->name).output);
        for (const std::string& backend : sets) {
            INFO(mechanism->name << " on " << backend << " against " << sets.front());
            CHECK(difference(values(run(service(backend), inputs, mechanism->name).output),
                             {reference.begin(), reference.end()}) <=
                  std::max(5e-6, spec.tolerance) * std::max(1.0, largest(values(*inputs.value))));
        }
    }
}

TEST_CASE("grouped heads equal repeated key heads") {
    for_all("gqa", [](attend::AttentionService& engine, const specs::Spec& spec) {
        if (!spec.gqa) return;
        Random random(16);
        const ForwardInputs grouped = make_inputs(spec, random, {1, 6, 2, 17, 17, 8, 8});
        ForwardInputs repeated = grouped;
        for (auto* tensor : {&repeated.key, &repeated.value}) {
            const Tensor from = **tensor;
            Tensor to = Tensor::allocate(attend::DType::f32, {1, 6, 17, 8}).value();
            for (std::int64_t h = 0; h < 6; ++h)
                std::copy_n(from.as<float>() + h / 3 * 17 * 8, 17 * 8, to.as<float>() + h * 17 * 8);
            *tensor = to;
        }
        const auto a = values(run(engine, repeated, spec.mechanism).output);
        CHECK(difference(values(run(engine, grouped, spec.mechanism).output), {a.begin(), a.end()}) <= 2e-6);
    });
}

TEST_CASE("scores are the weights that make the output") {
    for_all("scores", [](attend::AttentionService& engine, const specs::Spec& spec) {
        if (!engine.registry()->find(spec.mechanism)->has(ATTEND_CAP_SCORES_OUT)) return;
        Random random(17);
        const ForwardInputs inputs = make_inputs(spec, random, {1, 2, 2, 33, 33, 8, 8});
        const auto got = run(engine, inputs, spec.mechanism, {}, false, true);
        const auto p = values(*got.scores), v = values(*inputs.value);
        const auto heads = static_cast<std::size_t>(inputs.value->shape[1]);
        std::vector<double> product(2 * 33 * 8, 0.0);
        for (std::size_t row = 0; row < 66; ++row) {
            double sum = 0.0;
            for (std::size_t j = 0; j < 33; ++j) {
                sum += static_cast<double>(p[row * 33 + j]);
                for (std::size_t d = 0; d < 8; ++d)
                    product[row * 8 + d] += static_cast<double>(p[row * 33 + j]) *
                                            static_cast<double>(v[((row / 33 * heads / 2) * 33 + j) * 8 + d]);
            }
            CHECK(std::abs(sum - 1.0) <= 1e-5);
        }
        CHECK(difference(values(got.output), product) <= 1e-5);
    });
}

TEST_CASE("rows of scores are those of the whole call bit for bit, whatever the window") {
    std::size_t offered = 0;
    for_all("score rows", [&](attend::AttentionService& engine, const specs::Spec& spec) {
        const auto mechanism = engine.registry()->find(spec.mechanism);
        if (!mechanism->has(ATTEND_CAP_SCORES_OUT)) return;
        CHECK(mechanism->functions->get_extension(mechanism->lib, ATTEND_EXT_SCORES) != nullptr);
        ++offered;
        std::uint64_t seed = 300;
        std::vector<NamedValues> all = variants(spec);
        const std::size_t causal_at = spec.causal ? 1 : all.size();
        if (spec.causal) all.insert(all.begin() + 1, NamedValues{{"causal", true}});
        // Tiles walk in groups where there are many; with causal they see different keys.
        const Shape grouped{1, 8, 8, 150, 150, 8, 8};
        for (std::size_t at = 0; at < all.size(); ++at)
            for (const Shape& shape : {Shape{2, 2, 2, 33, 33, 8, 8}, Shape{2, 2, 1, 50, 50, 16, 16},
                                       Shape{1, 4, 2, 130, 130, 16, 16}, Shape{2, 2, 2, 1, 50, 8, 8}, grouped}) {
                if ((shape.q_len != shape.kv_len && (!spec.cross || spec.rows_on_axis)) ||
                    (shape.kv_heads != shape.heads && !spec.gqa) || !fits(all[at], shape) ||
                    (spec.fits && !spec.fits(all[at], shape.q_len, shape.kv_len)) ||
                    (shape.q_len == grouped.q_len && at != causal_at) ||
                    (shape.q_len != grouped.q_len && at == causal_at) || (shape.q_len != 33 && at > 1))
                    continue;
                Random random(++seed);
                INFO(shape.text() << " options " << shown(all[at]));
                ForwardInputs inputs = make_inputs(spec, random, shape);
                if (spec.key_masks && at % 2 == 1) inputs.mask = random_mask(random, {1, 1, 1, shape.kv_len});
                inputs = completed(spec, inputs, all[at]);
                const Tensor whole = *run(engine, inputs, spec.mechanism, all[at], false, true).scores;
                const attend::ForwardOptions call{spec.mechanism, all[at]};
                const std::int64_t rows = whole.shape[whole.shape.size() - 2], keys = whole.shape.back();
                const auto row_bytes = static_cast<std::uint64_t>(whole.size() / std::max<std::int64_t>(rows, 1) *
                                                                  static_cast<std::int64_t>(sizeof(float)));
                // Windows of one row, of fewer than a tile, across tiles, and chosen rows that make windows of their own.
                for (const std::uint64_t count : {1u, 7u, 47u}) {
                    if (count > 1 && rows == 1) continue;
                    if (count < 47 && rows >= 130) continue;
                    if (count == 1 && rows > 1 && at > 0) continue;
                    attend::WeightRequest request;
                    request.full = true;
                    request.chunk_bytes = count * row_bytes;
                    const auto got = engine.attention_weights(inputs, call, request);
                    REQUIRE(got.ok());
                    CHECK(std::memcmp(got->full->data, whole.data, whole.byte_size()) == 0);
                }
                attend::WeightRequest some;
                for (int n = 0; n < 5; ++n) some.rows.push_back(random.below(rows));
                const auto got = engine.attention_weights(inputs, call, some);
                REQUIRE(got.ok());
                bool same = true;
                for (std::int64_t head = 0; head < got->batch * got->heads; ++head)
                    for (std::size_t n = 0; n < some.rows.size(); ++n)
                        same = same && std::memcmp(got->row_weights->as<float>() +
                                                       (head * 5 + static_cast<std::int64_t>(n)) * keys,
                                                   whole.as<float>() + (head * rows + some.rows[n]) * keys,
                                                   static_cast<std::size_t>(keys) * sizeof(float)) == 0;
                CHECK(same);
            }
    });
    CHECK((offered > 0 || only_mechanism() != nullptr));
}

TEST_CASE("logits are what the softmax makes the weights of") {
    for_all("score rows", [](attend::AttentionService& engine, const specs::Spec& spec) {
        const auto mechanism = engine.registry()->find(spec.mechanism);
        if (!mechanism->has(ATTEND_CAP_SCORES_OUT)) return;
        const auto* rows = static_cast<const attend_scores_extension*>(
            mechanism->functions->get_extension(mechanism->lib, ATTEND_EXT_SCORES));
        Random random(31);
        ForwardInputs inputs = make_inputs(spec, random, {1, 2, 2, 65, 65, 8, 8});
        if (spec.key_masks) inputs.mask = random_mask(random, {1, 1, 1, 65});
        const auto logits = engine.attention_scores(inputs, {spec.mechanism, {}}, attend::ScoreStage::logits);
        if (rows->logits == nullptr) {
            REQUIRE_FALSE(logits.ok());
            CHECK(logits.error().code == attend::ErrorCode::unsupported);
            return;
        }
        REQUIRE(logits.ok());
        const auto weights = engine.attention_scores(inputs, {spec.mechanism, {}});
        REQUIRE(weights.ok());
        const std::int64_t keys = weights->shape[3];
        double worst = 0.0;
        for (std::int64_t row = 0; row < weights->size() / keys; ++row) {
            const float *x = logits->as<float>() + row * keys, *w = weights->as<float>() + row * keys;
            const float most = *std::max_element(x, x + keys);
            double sum = 0.0;
            for (std::int64_t j = 0; j < keys && std::isfinite(most); ++j)
                sum += std::exp(static_cast<double>(x[j]) - static_cast<double>(most));
            for (std::int64_t j = 0; j < keys; ++j) {
                const double expected =
                    sum > 0.0 ? std::exp(static_cast<double>(x[j]) - static_cast<double>(most)) / sum : 0.0;
                worst = std::max(worst, std::abs(static_cast<double>(w[j]) - expected));
            }
        }
        CHECK(worst <= 4e-6);
    });
}

TEST_CASE("option bounds are accepted and one past them is refused by name") {
    for (const auto& mechanism : mechanisms())
        for (const attend::OptionSpec& option : mechanism->options) {
            const bool integer = option.type == attend::OptionType::integer;
            if (!integer && option.type != attend::OptionType::real) continue;
            Random random(18);
            const ForwardInputs inputs = make_inputs(spec_of(mechanism->name), random, {1, 2, 2, 4, 4, 8, 8});
            for (const double past : {option.min - 1.0, option.max + std::max(1.0, std::abs(option.max) * 1e-3)}) {
                if (!std::isfinite(past) || std::abs(past) > 9e15) continue;
                attend::ForwardOptions call{
                    mechanism->name, {{option.name, integer ? Json(static_cast<std::int64_t>(past)) : Json(past)}}};
                const auto result = service().forward(inputs, call);
                INFO(mechanism->name << " " << option.name << " = " << past);
                REQUIRE_FALSE(result.ok());
                CHECK(result.error().code == attend::ErrorCode::option);
                CHECK(result.error().message.find("\"" + option.name + "\"") != std::string::npos);
                CHECK(result.error().message.find("accepted") != std::string::npos);
            }
        }
}

TEST_CASE("unknown options are refused with the nearest name") {
    for (const auto& mechanism : mechanisms()) {
        Random random(19);
        const auto result = service().forward(make_inputs(spec_of(mechanism->name), random, {1, 1, 1, 4, 4, 8, 8}),
                                              {mechanism->name, {{"sede", 1}}});
        REQUIRE_FALSE(result.ok());
        CHECK(result.error().code == attend::ErrorCode::option);
        const bool has_seed = std::any_of(mechanism->options.begin(), mechanism->options.end(),
                                          [](const attend::OptionSpec& option) { return option.name == "seed"; });
        CHECK((!has_seed || result.error().message.find("\"seed\"") != std::string::npos));
    }
}

TEST_CASE("mismatched shapes are refused with the extents") {
    for (const auto& mechanism : mechanisms()) {
        Random random(20);
        INFO(mechanism->name);
        ForwardInputs inputs = make_inputs(spec_of(mechanism->name), random, {1, 4, 4, 5, 5, 8, 8});
        inputs.key = normal(random, {1, inputs.key->shape[1], 5, 9});
        CHECK(service().forward(inputs, {mechanism->name, {}}).error().code == attend::ErrorCode::shape);
        inputs = make_inputs(spec_of(mechanism->name), random, {1, 4, 4, 5, 5, 8, 8});
        inputs.value = normal(random, {1, inputs.key->shape[1], 6, 8});
        CHECK(service().forward(inputs, {mechanism->name, {}}).error().code == attend::ErrorCode::shape);
        inputs = support::make_inputs(random, {1, 4, 3, 5, 5, 8, 8});
        CHECK(service().forward(inputs, {mechanism->name, {}}).error().code == attend::ErrorCode::shape);
        inputs = make_inputs(spec_of(mechanism->name), random, {2, 4, 4, 5, 5, 8, 8});
        inputs.key_lengths = lengths({6, 1});
        CHECK(service().forward(inputs, {mechanism->name, {}}).error().code == attend::ErrorCode::shape);
    }
}

TEST_CASE("inputs are not modified and outputs alias nothing") {
    for (const auto& mechanism : mechanisms()) {
        Random random(21);
        const ForwardInputs inputs = make_inputs(spec_of(mechanism->name), random, {1, 2, 2, 12, 12, 8, 8});
        const auto q = values(inputs.query), k = values(*inputs.key), v = values(*inputs.value);
        const auto got = run(service(), inputs, mechanism->name);
        CHECK(values(inputs.query) == q);
        CHECK(values(*inputs.key) == k);
        CHECK(values(*inputs.value) == v);
        for (const auto* tensor : {&inputs.query, &*inputs.key, &*inputs.value}) CHECK(got.output.data != tensor->data);
    }
}
