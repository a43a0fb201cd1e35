// SPDX-License-Identifier: Apache-2.0
// Identities of flash-decoding.
#include <algorithm>

#include "identities/identities.hpp"

namespace {

using namespace identities;
using attend::DType;
constexpr const char* decoding = "flash-decoding";
constexpr const char* v2 = "flash-attention-v2";
constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

// The call with its keys and values in pages of `page` keys; `order` numbers the physical pages. Unused slots, pages that
// nobody names, and entries behind an item's length hold what must not be read.
struct Paging {
    std::int64_t page{16};
    std::uint64_t order{0};
    float poison{nan_value};
    std::int64_t spare_entries{2};
};
ForwardInputs paged(const ForwardInputs& inputs, const Paging& how) {
    const Tensor& key = *inputs.key;
    const std::int64_t batch = key.shape[0], heads = key.shape[1], keys = key.shape[2];
    const auto length = [&](std::int64_t item) {
        return inputs.key_lengths ? inputs.key_lengths->as<std::int64_t>()[item] : keys;
    };
    const std::int64_t entries = (keys + how.page - 1) / how.page + how.spare_entries;
    std::int64_t pages = 3;  // of nobody
    for (std::int64_t item = 0; item < batch; ++item) pages += (length(item) + how.page - 1) / how.page;
    std::vector<std::int64_t> order = range(0, pages);
    Random random(how.order);
    if (how.order != 0) order = shuffled(random, pages);
    Tensor table = Tensor::allocate(DType::i32, {batch, entries}).value();
    Tensor sides[2] = {filled({pages, heads, how.page, key.shape[3]}, how.poison),
                       filled({pages, heads, how.page, inputs.value->shape[3]}, how.poison)};
    std::size_t next = 0;
    for (std::int64_t item = 0; item < batch; ++item)
        for (std::int64_t entry = 0; entry < entries; ++entry) {
            const bool needed = entry * how.page < length(item);
            const std::int64_t page = needed ? order[next++] : entry % 2 == 0 ? -1 : 1 << 20;
            table.as<std::int32_t>()[item * entries + entry] = static_cast<std::int32_t>(page);
            for (std::int64_t slot = 0; needed && slot < how.page && entry * how.page + slot < length(item); ++slot)
                for (std::int64_t head = 0; head < heads; ++head)
                    for (const bool values : {false, true}) {
                        const Tensor& from = values ? *inputs.value : key;
                        for (std::int64_t d = 0; d < from.shape[3]; ++d)
                            at(sides[values], page, head, slot, d) = at(from, item, head, entry * how.page + slot, d);
                    }
        }
    ForwardInputs cache = inputs;
    cache.key.reset();
    cache.value.reset();
    if (!cache.key_lengths) {
        std::vector<std::int64_t> whole(static_cast<std::size_t>(batch), keys);
        cache.key_lengths = lengths(whole);
    }
    cache.extra = {{"block_table", table}, {"value_pages", sides[1]}, {"key_pages", sides[0]}};
    return cache;
}
Tensor& extra(ForwardInputs& inputs, const std::string& name) {
    return std::find_if(inputs.extra.begin(), inputs.extra.end(),
                        [&](const auto& entry) { return entry.first == name; })
        ->second;
}

// A few queries, a long cache, items of different length.
ForwardInputs cache_of(Random& random, const Shape& shape) {
    ForwardInputs inputs = make_inputs(random, shape);
    std::vector<std::int64_t> counts;
    for (std::int64_t item = 0; item < shape.batch; ++item)
        counts.push_back(item == 0 ? shape.kv_len : random.below(shape.kv_len + 1));
    inputs.key_lengths = lengths(counts);
    return inputs;
}
Shape few_queries(Random& random) {
    Shape shape;
    shape.batch = 1 + random.below(3);
    shape.kv_heads = 1 + random.below(2);
    shape.heads = shape.kv_heads * (1 + random.below(4));
    shape.q_len = 1 + random.below(5);
    shape.kv_len = 20 + random.below(300);
    shape.head_dim = 1 + random.below(40);
    shape.value_dim = 1 + random.below(40);
    return shape;
}
template <class Body>
void on_caches(std::uint64_t seed, Body body) {
    for (int round = 0; round < 6; ++round) {
        Random random(seed * 100 + static_cast<std::uint64_t>(round));
        const Shape shape = few_queries(random);
        INFO(shape.text() << ", round " << round);
        body(random, shape);
    }
}
// The rows as flash-attention-v2 needs it to be told: whole query lengths beside the key lengths.
ForwardInputs told(ForwardInputs inputs) {
    const std::vector<std::int64_t> whole(static_cast<std::size_t>(inputs.query.shape[0]), inputs.query.shape[2]);
    if (!inputs.query_lengths) inputs.query_lengths = lengths(whole);
    return inputs;
}
Partial part_of(const ForwardResult& result) { return {values(result.output), values(*result.lse)}; }

}  // namespace

TEST_CASE("flash-decoding: splits and packing") {
    on_caches(1, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = cache_of(random, shape);
        const ForwardResult whole = forward(told(inputs), v2, {{"causal", true}});
        const std::int64_t blocks = (shape.kv_len + 15) / 16;
        for (const std::int64_t splits : {std::int64_t{0}, std::int64_t{1}, std::int64_t{2}, std::int64_t{3},
                                          std::int64_t{7}, blocks, std::int64_t{256}})
            for (const char* pack : {"auto", "true", "false"})
                for (const bool pages : {false, true}) {
                    INFO("num_splits " << splits << " pack_gqa " << pack << " pages " << pages);
                    CHECK(agree(forward(pages ? paged(inputs, {}) : inputs, decoding,
                                        {{"num_splits", splits}, {"pack_gqa", pack}, {"block_kv", 16}}),
                                whole));
                }
        // The same with everything else that rows differ in.
        ForwardInputs more = told(inputs);
        more.bias = normal(random, {1, shape.heads, shape.q_len, shape.kv_len});
        more.mask = bools({shape.batch, 1, shape.q_len, shape.kv_len},
                          [&](const std::vector<std::int64_t>&) { return random.below(4) != 0; });
        more.extra = {{"alibi_slopes", normal(random, {shape.heads})}};
        const NamedValues options{{"causal", true}, {"window_left", 90}, {"softcap", 2.0}, {"scale", 0.3}};
        const ForwardResult expected = forward(more, v2, options);
        more.query_lengths.reset();
        for (const bool pack : {true, false}) {
            NamedValues mine = options;
            mine.emplace_back("pack_gqa", pack);
            mine.emplace_back("num_splits", 3);
            mine.emplace_back("block_kv", 16);
            CHECK(agree(forward(more, decoding, mine), expected));
            ForwardInputs pages = more;
            pages.mask.reset();
            pages.bias.reset();
            ForwardInputs rest = told(more);
            rest.mask.reset();
            rest.bias.reset();
            ForwardInputs in_pages = paged(pages, {.page = 32, .order = 3});
            in_pages.extra.push_back(more.extra[0]);
            CHECK(agree(forward(in_pages, decoding, mine), forward(rest, v2, options)));
        }
    });
}

TEST_CASE("flash-decoding: physical pages") {
    on_caches(2, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = cache_of(random, shape);
        for (const std::int64_t page : {1, 16, 40}) {
            const ForwardResult one = forward(paged(inputs, {.page = page}), decoding);
            const ForwardResult other = forward(paged(inputs, {.page = page, .order = 9}), decoding);
            CHECK(same_bits(one.output, other.output));
            CHECK(same_bits(*one.lse, *other.lse));
        }
        // Items that begin alike may share pages.
        ForwardInputs twin = make_inputs(random, {2, 2, 1, 2, 48, 8, 8});
        for (auto* side : {&twin.key, &twin.value}) {
            const Tensor first = take(**side, 0, {0});
            *side = joined(first, first, 0);
        }
        const ForwardResult apart = forward(paged(twin, {.page = 16}), decoding);
        ForwardInputs shared = paged(twin, {.page = 16});
        std::int32_t* table = extra(shared, "block_table").as<std::int32_t>();
        const std::int64_t entries = extra(shared, "block_table").shape[1];
        for (std::int64_t entry = 0; entry < 3; ++entry) table[entries + entry] = table[entry];
        CHECK(same_bits(forward(shared, decoding).output, apart.output));
    });
}

TEST_CASE("flash-decoding: page size") {
    on_caches(3, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = cache_of(random, shape);
        const ForwardResult contiguous = forward(inputs, decoding);
        for (const std::int64_t page : {1, 16, 64, 256, 23})
            CHECK(agree(forward(paged(inputs, {.page = page, .order = 5}), decoding), contiguous));
    });
}

TEST_CASE("flash-decoding: prefill consistency") {
    for (std::uint64_t seed = 0; seed < 3; ++seed) {
        Random random(400 + seed);
        const Shape shape{1, 4, 2, 40, 40, 16, 12};
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult prompt = forward(inputs, v2, {{"causal", true}, {"window_left", seed == 2 ? 9 : -1}});
        for (std::int64_t t = 0; t < shape.q_len; ++t) {
            ForwardInputs step = inputs;
            step.query = take(inputs.query, 2, {t});
            step.key_lengths = lengths({t + 1});
            if (seed > 0) step = paged(step, {.page = 8, .order = seed});
            const ForwardResult got = forward(step, decoding, {{"window_left", seed == 2 ? 9 : -1}});
            CHECK(agree(got.output, take(prompt.output, 2, {t})));
            CHECK(agree(*got.lse, take(*prompt.lse, 2, {t})));
        }
    }
}

TEST_CASE("flash-decoding: two queries") {
    on_caches(5, [](Random& random, Shape shape) {
        shape.q_len = 2;
        shape.batch = 1;
        const ForwardInputs inputs = make_inputs(random, shape);
        const ForwardResult both = forward(inputs, decoding);
        ForwardInputs first = inputs;
        first.query = take(inputs.query, 2, {0});
        first.key_lengths = lengths({shape.kv_len - 1});
        CHECK(agree(take(both.output, 2, {0}), forward(first, decoding).output));
        CHECK(agree(take(*both.lse, 2, {0}), *forward(first, decoding).lse));
    });
}

TEST_CASE("flash-decoding: merge") {
    on_caches(6, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = make_inputs(random, shape);
        const NamedValues all{{"causal", false}};
        const ForwardResult whole = forward(inputs, decoding, all);
        const std::int64_t cut = random.below(shape.kv_len + 1);
        ForwardInputs prefix = inputs, suffix = inputs;
        for (const bool behind : {false, true}) {
            ForwardInputs& part = behind ? suffix : prefix;
            const auto keys = behind ? range(cut, shape.kv_len) : range(0, cut);
            part.key = take(*inputs.key, 2, keys);
            part.value = take(*inputs.value, 2, keys);
        }
        const Partial one = merged(forward(prefix, decoding, all), forward(suffix, decoding, all));
        const Partial expected = part_of(whole);
        CHECK(agree(one.output, expected.output));
        CHECK(agree(one.lse, expected.lse));
        // What the parts inside a call have is what calls of their own would have.
        ForwardInputs quarter = inputs;
        std::vector<double> sum(values(*whole.lse).size(), 0.0);
        for (std::int64_t begin = 0; begin < shape.kv_len; begin += 64) {
            const auto keys = range(begin, std::min(begin + 64, shape.kv_len));
            quarter.key = take(*inputs.key, 2, keys);
            quarter.value = take(*inputs.value, 2, keys);
            const std::vector<float> lse = values(*forward(quarter, decoding, all).lse);
            for (std::size_t row = 0; row < sum.size(); ++row) sum[row] += std::exp(static_cast<double>(lse[row]));
        }
        std::vector<float> logs;
        for (const double x : sum) logs.push_back(static_cast<float>(std::log(x)));
        CHECK(agree(values(*forward(inputs, decoding, {{"causal", false}, {"num_splits", 8}, {"block_kv", 64}}).lse),
                    logs));
    });
}

TEST_CASE("flash-decoding: poison") {
    on_caches(7, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = cache_of(random, shape);
        for (const std::int64_t page : {1, 16, 40}) {
            const ForwardResult good = forward(paged(inputs, {.page = page, .poison = 0.0f}), decoding);
            for (const float poison : {nan_value, std::numeric_limits<float>::infinity()}) {
                const ForwardResult bad = forward(paged(inputs, {.page = page, .poison = poison}), decoding);
                CHECK(same_bits(good.output, bad.output));
                CHECK(same_bits(*good.lse, *bad.lse));
                CHECK(same_bits(
                    forward(paged(inputs, {.page = page, .poison = poison}), decoding, {{"validate", "full"}}).output,
                    good.output));
            }
        }
    });
}

TEST_CASE("flash-decoding: lengths place the queries") {
    on_caches(8, [](Random& random, Shape shape) {
        shape.batch = 2;
        const ForwardInputs inputs = cache_of(random, shape);
        const ForwardResult together = forward(inputs, decoding);
        for (std::int64_t item = 0; item < 2; ++item) {
            ForwardInputs alone = inputs;
            const std::int64_t length = inputs.key_lengths->as<std::int64_t>()[item];
            alone.query = take(inputs.query, 0, {item});
            alone.key = take(take(*inputs.key, 0, {item}), 2, range(0, length));
            alone.value = take(take(*inputs.value, 0, {item}), 2, range(0, length));
            alone.key_lengths.reset();
            const ForwardResult got = forward(alone, decoding);
            CHECK(agree(got.output, take(together.output, 0, {item})));
            CHECK(agree(*got.lse, take(*together.lse, 0, {item})));
        }
        // Fewer keys than queries: the first rows see none.
        ForwardInputs few = inputs;
        few.query = normal(random, {2, shape.heads, 4, shape.head_dim});
        few.key_lengths = lengths({1, 2});
        const ForwardResult rows = forward(few, decoding);
        for (std::int64_t item = 0; item < 2; ++item)
            for (std::int64_t h = 0; h < shape.heads; ++h)
                for (std::int64_t i = 0; i < 4; ++i) {
                    const bool empty = i < 3 - item;
                    CHECK((at(*rows.lse, item, h, i) == -std::numeric_limits<float>::infinity()) == empty);
                    for (std::int64_t d = 0; empty && d < shape.value_dim; ++d)
                        CHECK(at(rows.output, item, h, i, d) == 0.0f);
                }
        // Query lengths alone move them, too.
        ForwardInputs shorter = inputs;
        shorter.query_lengths = lengths({1, 1});
        const ForwardResult first = forward(shorter, decoding);
        ForwardInputs single = inputs;
        single.query = take(inputs.query, 2, {0});
        CHECK(agree(take(first.output, 2, {0}), forward(single, decoding).output));
    });
}

namespace {

// Codes of 8 bits with one scale for each group of keys; `dense` becomes what they stand for.
struct Coded {
    Tensor codes, scale;
};
float of_e4m3(int code) {
    const int exponent = code >> 3 & 15, rest = code & 7;
    if ((code & 127) == 127) return nan_value;
    const double size = exponent == 0 ? std::ldexp(rest, -9) : std::ldexp(8 + rest, exponent - 10);
    return static_cast<float>((code & 128) != 0 ? -size : size);
}
Coded coded(Random& random, Tensor& dense, std::int64_t group, DType type) {
    const std::vector<std::int64_t> s = dense.shape;
    Coded made{Tensor::allocate(type, s).value(), filled({s[0], s[1], (s[2] + group - 1) / group}, 0.0f)};
    for (std::int64_t a = 0; a < s[0]; ++a)
        for (std::int64_t h = 0; h < s[1]; ++h)
            for (std::int64_t j = 0; j < s[2]; ++j) {
                float& scale = at(made.scale, a, h, j / group);
                if (scale == 0.0f) scale = 0.01f * static_cast<float>(1 + random.below(9));
                for (std::int64_t d = 0; d < s[3]; ++d) {
                    auto* code = static_cast<unsigned char*>(made.codes.data) + ((a * s[1] + h) * s[2] + j) * s[3] + d;
                    int drawn = static_cast<int>(random.below(255));
                    if (type != DType::i8 && (drawn & 127) > 110) drawn &= 0xCF;  // of moderate size, never NaN
                    *code = static_cast<unsigned char>(drawn);
                    at(dense, a, h, j, d) =
                        scale *
                        (type == DType::i8 ? static_cast<float>(static_cast<signed char>(*code)) : of_e4m3(drawn));
                }
            }
    return made;
}

}  // namespace

TEST_CASE("flash-decoding: codes") {
    on_caches(9, [](Random& random, const Shape& shape) {
        for (const DType type : {DType::i8, DType::u8, DType::f8_e4m3}) {
            ForwardInputs dense = cache_of(random, shape), codes = dense;
            const Coded key = coded(random, *dense.key, 32, type), value = coded(random, *dense.value, 32, type);
            codes.key = key.codes;
            codes.value = value.codes;
            codes.extra = {{"key_scale", key.scale}, {"value_scale", value.scale}};
            const char* name = type == DType::i8 ? "int8" : "e4m3";
            const double size = largest(values(*dense.value));
            const ForwardResult expected = forward(dense, decoding);
            const ForwardResult got = forward(codes, decoding, {{"block_kv", 32}, {"kv_dtype", name}});
            CHECK(agree(*got.lse, *expected.lse));
            CHECK(agree(got.output, expected.output, 1e-5 * std::max(1.0, size)));
            CHECK(same_bits(got.output, forward(codes, decoding, {{"block_kv", 32}}).output));
        }
        // In pages there is a scale for each page.
        ForwardInputs pages = paged(cache_of(random, shape), {.page = 16, .order = 4, .poison = 0.0f});
        ForwardInputs codes = pages;
        const Coded key = coded(random, extra(pages, "key_pages"), 16, DType::i8),
                    value = coded(random, extra(pages, "value_pages"), 16, DType::i8);
        extra(codes, "key_pages") = key.codes;
        extra(codes, "value_pages") = value.codes;
        codes.extra.emplace_back("key_scale", key.scale);
        codes.extra.emplace_back("value_scale", value.scale);
        const double size = largest(values(extra(pages, "value_pages")));
        const ForwardResult expected = forward(pages, decoding);
        CHECK(agree(forward(codes, decoding).output, expected.output, 1e-5 * std::max(1.0, size)));
        CHECK(agree(*forward(codes, decoding, {{"pack_gqa", false}}).lse, *expected.lse));
    });
}

TEST_CASE("flash-decoding: narrower types") {
    on_caches(10, [](Random& random, const Shape& shape) {
        const ForwardInputs inputs = cache_of(random, shape);
        for (const auto& [type, name] : {std::pair(DType::bf16, "bf16"), std::pair(DType::f16, "fp16")}) {
            ForwardInputs narrow = inputs;
            narrow.key = attend::convert(*inputs.key, type).value();
            narrow.value = attend::convert(*inputs.value, type).value();
            const ForwardResult expected = forward(narrow, decoding);
            CHECK(agree(forward(inputs, decoding, {{"kv_dtype", name}}), expected));
            CHECK_FALSE(same_bits(forward(inputs, decoding).output, expected.output));
            CHECK(same_bits(forward(narrow, decoding, {{"kv_dtype", name}}).output, expected.output));
            CHECK(same_bits(forward(narrow, decoding, {{"kv_dtype", "fp32"}}).output, expected.output));
            // Pages stay in the type that they have.
            ForwardInputs pages = paged(inputs, {.page = 16, .poison = 0.0f}), wide = pages;
            for (const char* side : {"key_pages", "value_pages"})
                extra(pages, side) = attend::convert(extra(pages, side), type).value();
            CHECK(agree(forward(pages, decoding), expected));
            CHECK(agree(forward(wide, decoding, {{"kv_dtype", name}}), expected));
            // With queries of the same type.
            ForwardInputs all = pages;
            all.query = attend::convert(inputs.query, type).value();
            ForwardInputs plain = narrow;
            plain.query = all.query;
            CHECK(agree(values(attend::convert(forward(all, decoding).output, DType::f32).value()),
                        values(attend::convert(forward(plain, decoding).output, DType::f32).value()), 0.02));
        }
    });
}

TEST_CASE("flash-decoding: rejects options") {
    Random random(1);
    const ForwardInputs inputs = make_inputs(random, {1, 2, 2, 1, 40, 8, 8});
    rejects(inputs, decoding, {{"dropout", 0.1}}, {"dropout", "0.1", "accepted"});
    rejects(inputs, decoding, {{"num_splits", 257}}, {"num_splits", "257", "0 to 256"});
    rejects(inputs, decoding, {{"num_splits", -1}}, {"num_splits", "-1"});
    rejects(inputs, decoding, {{"block_kv", 24}}, {"block_kv", "24", "multiple of 16"});
    rejects(inputs, decoding, {{"block_kv", 8}}, {"block_kv", "8"});
    rejects(inputs, decoding, {{"kv_dtype", "int8"}}, {"kv_dtype", "int8", "fp32", "accepted"});
    rejects(inputs, decoding, {{"kv_dtype", "e4m3"}}, {"kv_dtype", "e4m3", "accepted"});
    ForwardInputs half = inputs;
    half.key = attend::convert(*inputs.key, DType::f16).value();
    half.value = attend::convert(*inputs.value, DType::f16).value();
    rejects(half, decoding, {{"kv_dtype", "bf16"}}, {"kv_dtype", "bf16", "fp16"});
    ForwardInputs bad = inputs;
    at(*bad.key, 0, 1, 7, 3) = nan_value;
    rejects(bad, decoding, {{"validate", "full"}}, {"key", "NaN", "finite"});
}

TEST_CASE("flash-decoding: rejects pages that do not fit") {
    Random random(2);
    const ForwardInputs dense = make_inputs(random, {2, 2, 2, 1, 40, 8, 8});
    ForwardInputs good = paged(dense, {.page = 16});
    const auto with = [&](const char* name, auto change) {
        ForwardInputs bad = good;
        extra(bad, name) = take(extra(good, name), 0, range(0, extra(good, name).shape[0]));
        change(extra(bad, name));
        return bad;
    };
    for (const std::int32_t entry : {-1, 9, 1 << 30}) {
        ForwardInputs bad = good;
        Tensor table = Tensor::allocate(DType::i32, extra(good, "block_table").shape).value();
        std::copy_n(extra(good, "block_table").as<std::int32_t>(), table.size(), table.as<std::int32_t>());
        table.as<std::int32_t>()[table.shape[1] + 2] = entry;
        extra(bad, "block_table") = table;
        rejects(bad, decoding, {}, {"block_table[1, 2]", std::to_string(entry).c_str(), "0 to 8"});
    }
    ForwardInputs bad = good;
    bad.key_lengths = lengths({81, 3});
    rejects(bad, decoding, {}, {"key_lengths[0]", "81", "0 to 80"});
    bad = good;
    bad.key_lengths.reset();
    rejects(bad, decoding, {}, {"key_lengths", "missing"});
    bad = good;
    bad.key = dense.key;
    rejects(bad, decoding, {}, {"key", "not taken"});
    bad = good;
    bad.value = dense.value;
    rejects(bad, decoding, {}, {"value", "not taken"});
    for (const char* name : {"value_pages", "block_table", "key_pages"}) {
        bad = good;
        std::erase_if(bad.extra, [&](const auto& entry) { return entry.first == name; });
        rejects(bad, decoding, {}, {std::string(name) == "key_pages" ? "not taken" : name});
    }
    rejects(with("value_pages", [](Tensor& pages) { pages = take(pages, 2, range(0, 8)); }), decoding, {},
            {"pages", "8", "16"});
    rejects(with("key_pages", [](Tensor& pages) { pages = take(pages, 3, range(0, 7)); }), decoding, {},
            {"key_pages", "7", "8"});
}

TEST_CASE("flash-decoding: rejects codes without scales") {
    Random random(3);
    ForwardInputs inputs = make_inputs(random, {1, 2, 2, 1, 40, 8, 8}), codes = inputs;
    const Coded key = coded(random, *inputs.key, 16, DType::i8), value = coded(random, *inputs.value, 16, DType::i8);
    codes.key = key.codes;
    codes.value = value.codes;
    rejects(codes, decoding, {}, {"key_scale", "missing", "int8"});
    codes.extra = {{"key_scale", key.scale}};
    rejects(codes, decoding, {{"block_kv", 16}}, {"value_scale", "missing"});
    codes.extra.emplace_back("value_scale", value.scale);
    rejects(codes, decoding, {}, {"key_scale", "3", "1"});  // block_kv is 128: one scale for 40 keys
    rejects(codes, decoding, {{"block_kv", 16}, {"kv_dtype", "e4m3"}}, {"kv_dtype", "e4m3", "int8"});
    rejects(codes, decoding, {{"block_kv", 16}, {"kv_dtype", "bf16"}}, {"kv_dtype", "bf16", "int8"});
    codes.value = inputs.value;
    rejects(codes, decoding, {{"block_kv", 16}}, {"I8", "F32"});
    inputs.extra = codes.extra;
    rejects(inputs, decoding, {{"block_kv", 16}}, {"key_scale", "fp32", "codes"});
    // Queries are never codes.
    codes.query = key.codes;
    rejects(codes, decoding, {{"block_kv", 16}}, {"query", "I8"});
}
