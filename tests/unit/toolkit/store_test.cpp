// SPDX-License-Identifier: Apache-2.0
// Keys and values in pages and as codes, and fixed parts of the keys: both engines against the oracle, which sees the
// tokens one behind the other. Whatever no token needs is poison.
#include <numeric>

#include "support/effort.hpp"
#include "unit/toolkit/attention_case.hpp"

namespace attend::test {
namespace {

enum class Kept { f32, bf16, f16, int8, e4m3, to_bf16, to_f16 };  // the last two: float32 that counts as narrower
constexpr Kept all_kept[] = {Kept::f32, Kept::bf16, Kept::f16, Kept::int8, Kept::e4m3, Kept::to_bf16, Kept::to_f16};

struct Store {
    Kept kept{Kept::f32};
    int64_t page{0};  // keys of a page; 0: no pages
    int64_t scale_keys{16};
    int64_t splits{0}, split_keys{16};
    uint64_t order{0};       // of the physical pages
    bool shared{false};      // whole pages that are the same in two items are one
    bool heads_last{false};  // [P, S, Hkv, D]
    bool hardware{false};
};

bool codes(const Store& store) { return store.kept == Kept::int8 || store.kept == Kept::e4m3; }
Stored stored(Kept kept) { return kept == Kept::bf16 ? Stored::bf16 : kept == Kept::f16 ? Stored::f16 : Stored::f32; }

// By definition: sign, exponent with bias 7, three bits; all ones is NaN.
double of_e4m3(int code) {
    const int exponent = code >> 3 & 15, rest = code & 7;
    if ((code & 127) == 127) return std::nan("");
    const double size = exponent == 0 ? std::ldexp(rest, -9) : std::ldexp(8 + rest, exponent - 10);
    return (code & 128) != 0 ? -size : size;
}

// What key j of an item looks like in memory, the logical numbers rounded to what can be kept.
struct Memory {
    AttentionCase c;  // its k and v hold what the engine should see
    std::vector<unsigned char> rows[2];
    std::vector<int32_t> table;
    std::vector<float> scales[2];
    int64_t pages{0}, per_item{0};
    int64_t shape[2][4], strides[2][4], scale_shape[3], scale_strides[3], table_shape[2], table_strides[2];
    attend_tensor tensors[2], scale_tensors[2], table_tensor;

    Memory(const Memory&) = delete;
    Memory(AttentionCase given, const Store& store, uint64_t seed) : c(std::move(given)) {
        Random random(seed);
        const int64_t keys = c.kv_len;
        const auto length = [&](int64_t item) {
            return c.key_lengths.empty() ? keys : c.key_lengths[static_cast<size_t>(item)];
        };
        const int64_t page = store.page > 0 ? store.page : keys;
        per_item = store.page > 0 ? keys / page : 1;
        // Which page each item's n-th is.
        table.assign(static_cast<size_t>(c.batch * per_item), -7);
        pages = store.page > 0 ? 0 : c.batch;
        if (store.page > 0) {
            std::vector<int32_t*> needed;
            for (int64_t item = 0; item < c.batch; ++item)
                for (int64_t at = 0; at * page < length(item); ++at) {
                    int32_t& entry = table[static_cast<size_t>(item * per_item + at)];
                    if (store.shared && item == 1 && (at + 1) * page <= std::min(length(0), length(1))) {
                        for (auto* all : {&c.k, &c.v}) {
                            const int64_t width = all == &c.k ? c.head_dim : c.value_dim;
                            for (int64_t head = 0; head < c.kv_heads; ++head)
                                std::copy_n(all->begin() + (head * keys + at * page) * width, page * width,
                                            all->begin() + ((c.kv_heads + head) * keys + at * page) * width);
                        }
                        entry = static_cast<int32_t>(-100 - at);
                        continue;
                    }
                    needed.push_back(&entry);
                }
            pages = static_cast<int64_t>(needed.size()) + 2;  // two that nobody names
            std::vector<int32_t> order(static_cast<size_t>(pages));
            std::iota(order.begin(), order.end(), 0);
            std::mt19937_64 shuffle(store.order);
            if (store.order != 0) std::shuffle(order.begin(), order.end(), shuffle);
            for (size_t at = 0; at < needed.size(); ++at) *needed[at] = order[at];
            for (int64_t at = 0; at < per_item; ++at)
                if (c.batch > 1 && table[static_cast<size_t>(per_item + at)] == -100 - at)
                    table[static_cast<size_t>(per_item + at)] = table[static_cast<size_t>(at)];
            for (int64_t item = 0; item < c.batch; ++item)
                for (int64_t at = (length(item) + page - 1) / page; at < per_item; ++at)
                    table[static_cast<size_t>(item * per_item + at)] = random.pick<int32_t>({-1, 1 << 30, INT32_MIN});
        }
        for (const bool values : {false, true}) {
            std::vector<float>& dense = values ? c.v : c.k;
            const int64_t width = values ? c.value_dim : c.head_dim;
            const int64_t bytes = codes(store) ? 1 : stored(store.kept) == Stored::f32 ? 4 : 2;
            const int64_t groups = ((store.page > 0 ? store.page : keys) + store.scale_keys - 1) / store.scale_keys;
            auto& memory = rows[values];
            memory.assign(static_cast<size_t>(pages * c.kv_heads * page * width * bytes), 0xFF);  // NaN in all floats
            scales[values].assign(static_cast<size_t>(pages * c.kv_heads * groups), nan_value);
            int64_t* steps = strides[values];
            const int64_t extents[4] = {pages, c.kv_heads, page, width};
            std::copy_n(extents, 4, shape[values]);
            steps[3] = 1;
            steps[store.heads_last ? 1 : 2] = width;
            steps[store.heads_last ? 2 : 1] = width * (store.heads_last ? c.kv_heads : page);
            steps[0] = width * c.kv_heads * page;
            for (int64_t item = 0; item < c.batch; ++item)
                for (int64_t head = 0; head < c.kv_heads; ++head)
                    for (int64_t key = 0; key < keys; ++key) {
                        float* row = &dense[static_cast<size_t>(((item * c.kv_heads + head) * keys + key) * width)];
                        if (key >= length(item)) continue;
                        const int64_t first =
                            store.page > 0 ? table[static_cast<size_t>(item * per_item + key / page)] : item;
                        const int64_t group = (store.page > 0 ? key % store.page : key) / store.scale_keys;
                        float& scale =
                            scales[values][static_cast<size_t>((first * c.kv_heads + head) * groups + group)];
                        // A scale of its own for every group, and the same again for a page that is shared.
                        if (std::isnan(scale))
                            scale = 0.01f + 0.002f * static_cast<float>((first * 7 + head + group) % 11);
                        for (int64_t t = 0; t < width; ++t) {
                            const int64_t at = first * steps[0] + head * steps[1] + key % page * steps[2] + t;
                            unsigned char* to = &memory[static_cast<size_t>(at * bytes)];
                            if (store.kept == Kept::int8) {
                                const auto code =
                                    static_cast<int8_t>(std::clamp(std::nearbyint(row[t] / scale), -127.0f, 127.0f));
                                std::memcpy(to, &code, 1);
                                row[t] = static_cast<float>(code) * scale;
                            } else if (store.kept == Kept::e4m3) {
                                // Any code will do: the nearest of a few.
                                int best = 0;
                                for (int code = 0; code < 256; ++code) {
                                    const double x = of_e4m3(code), wanted = static_cast<double>(row[t] / scale);
                                    if (std::fabs(x - wanted) < std::fabs(of_e4m3(best) - wanted)) best = code;
                                }
                                *to = static_cast<unsigned char>(best);
                                row[t] = static_cast<float>(of_e4m3(best)) * scale;
                            } else if (bytes == 4) {
                                std::memcpy(to, &row[t], 4);
                                if (store.kept == Kept::to_bf16) row[t] = rounded_to(row[t], Stored::bf16);
                                if (store.kept == Kept::to_f16) row[t] = rounded_to(row[t], Stored::f16);
                            } else {
                                const uint16_t code = code_of(row[t], stored(store.kept));
                                std::memcpy(to, &code, 2);
                                row[t] = value_of(code, stored(store.kept));
                            }
                        }
                    }
            tensors[values] = describe(memory.data(), 4, shape[values], steps);
            attend_tensor& tensor = tensors[values];
            tensor.dtype_bits = static_cast<uint8_t>(8 * bytes);
            tensor.dtype_code = static_cast<uint8_t>(store.kept == Kept::int8   ? ATTEND_CODE_INT
                                                     : store.kept == Kept::e4m3 ? ATTEND_CODE_UINT
                                                     : store.kept == Kept::bf16 ? ATTEND_CODE_BFLOAT
                                                                                : ATTEND_CODE_FLOAT);
            const int64_t scale_extents[3] = {pages, c.kv_heads, groups};
            std::copy_n(scale_extents, 3, scale_shape);
            scale_strides[0] = c.kv_heads * groups;
            scale_strides[1] = groups;
            scale_strides[2] = 1;
            scale_tensors[values] = describe(scales[values].data(), 3, scale_shape, scale_strides);
        }
        table_shape[0] = c.batch;
        table_shape[1] = per_item;
        table_strides[0] = per_item;
        table_strides[1] = 1;
        table_tensor = describe(table.data(), 2, table_shape, table_strides);
        table_tensor.dtype_code = ATTEND_CODE_INT;
    }

    static attend_tensor describe(void* data, int rank, const int64_t* shape, const int64_t* strides) {
        attend_tensor tensor{};
        tensor.struct_size = sizeof tensor;
        tensor.data = data;
        tensor.device_type = ATTEND_DEVICE_CPU;
        tensor.ndim = rank;
        tensor.dtype_code = ATTEND_CODE_FLOAT;
        tensor.dtype_bits = 32;
        tensor.dtype_lanes = 1;
        tensor.shape = shape;
        tensor.strides = strides;
        tensor.align = 1;
        return tensor;
    }
};

EngineResult run_store(const Entry& entry, const Memory& memory, const Store& how, uint32_t workers) {
    const AttentionCase& c = memory.c;
    const attend_key_segment segment{&memory.tensors[0], &memory.tensors[1], 0, 0, nullptr};
    attend_key_store store{};
    store.pages = how.page > 0 ? &memory.table_tensor : nullptr;
    store.key_scale = codes(how) ? &memory.scale_tensors[0] : nullptr;
    store.value_scale = codes(how) ? &memory.scale_tensors[1] : nullptr;
    store.scale_keys = how.scale_keys;
    store.splits = how.splits;
    store.split_keys = how.split_keys;
    store.rounding = how.kept == Kept::to_bf16  ? ATTEND_STORE_ROUND_BF16
                     : how.kept == Kept::to_f16 ? ATTEND_STORE_ROUND_F16
                                                : ATTEND_STORE_AS_IT_IS;
    const auto blank = [](int64_t count) { return std::vector<float>(static_cast<size_t>(count), nan_value); };
    TypedTensor query({c.batch, c.q_heads, c.q_len, c.head_dim}, c.layout, c.q, c.q_type);
    TypedTensor output({c.batch, c.q_heads, c.q_len, c.value_dim}, c.layout,
                       blank(c.batch * c.q_heads * c.q_len * c.value_dim), c.q_type);
    Strided<float> lse({c.batch, c.q_heads, c.q_len}, c.layout, blank(c.batch * c.q_heads * c.q_len));
    Strided<uint8_t> mask;
    Strided<float> bias;
    const std::vector<int64_t> pairs{c.batch, c.q_heads, c.q_len, c.kv_len};
    if (c.use_mask) mask = Strided<uint8_t>(pairs, c.layout, c.mask);
    if (c.use_bias) bias = Strided<float>(pairs, c.layout, c.bias);
    Strided<int64_t> q_lengths({static_cast<int64_t>(c.query_lengths.size())}, Strides::spread, c.query_lengths);
    Strided<int64_t> k_lengths({static_cast<int64_t>(c.key_lengths.size())}, Strides::packed, c.key_lengths);
    const attend_tensor query_tensor = query.tensor(), output_tensor = output.tensor(), lse_tensor = lse.tensor(),
                        mask_tensor = mask.tensor(), bias_tensor = bias.tensor(), q_lengths_tensor = q_lengths.tensor(),
                        k_lengths_tensor = k_lengths.tensor();
    attend_tile_problem problem{};
    problem.flags = (c.causal ? ATTEND_TILE_CAUSAL : 0u) | (c.per_item ? ATTEND_TILE_OFFSET_PER_ITEM : 0u);
    problem.num_segments = 1;
    problem.query = &query_tensor;
    problem.segments = &segment;
    problem.output = &output_tensor;
    problem.lse = c.want_lse ? &lse_tensor : nullptr;
    problem.mask = c.use_mask ? &mask_tensor : nullptr;
    problem.bias = c.use_bias ? &bias_tensor : nullptr;
    problem.query_lengths = c.query_lengths.empty() ? nullptr : &q_lengths_tensor;
    problem.key_lengths = c.key_lengths.empty() ? nullptr : &k_lengths_tensor;
    problem.causal_offset = c.offset;
    problem.window_left = c.window_left;
    problem.window_right = c.window_right;
    problem.scale = c.scale;
    problem.softcap = c.softcap;
    problem.max_key_tile = c.max_key_tile;
    problem.score = c.hook ? test_score_hook : nullptr;
    problem.score_user = &c;
    problem.store = &store;
    const LoopHost loop(workers);
    attend_cpu cpu{};
    cpu.struct_size = sizeof cpu;
    cpu.isa = how.hardware ? ATTEND_ISA_AVX512_BF16 : 0;
    attend_host host = *loop.get();
    host.cpu = &cpu;
    Scratch scratch(entry.tile_workspace(&problem, workers));
    ErrorText error;
    attend_context context{};
    context.host = &host;
    context.workspace = scratch.data();
    context.workspace_bytes = scratch.bytes();
    context.error = &error.error;
    context.max_workers = workers;
    EngineResult result;
    result.status = entry.tile_forward(&problem, &context);
    result.text = error.text;
    result.output = output.values();
    result.lse = lse.values();
    result.clean = output.gaps_untouched() && lse.gaps_untouched() && scratch.guard_untouched();
    return result;
}

// Every instruction set; 1, 2 and 7 workers with the same bits.
void check_store(const AttentionCase& given, const Store& how, uint64_t seed) {
    const Memory memory(given, how, seed);
    AttentionCase seen = memory.c;
    seen.round_inputs();
    if (seen.per_item && seen.query_lengths.empty())
        seen.query_lengths.assign(static_cast<size_t>(seen.batch), seen.q_len);
    if (seen.per_item && seen.key_lengths.empty())
        seen.key_lengths.assign(static_cast<size_t>(seen.batch), seen.kv_len);
    const AttentionResult expected = oracle(seen);
    INFO(given.text());
    INFO("kept " << static_cast<int>(how.kept) << " page " << how.page << " scale_keys " << how.scale_keys << " splits "
                 << how.splits << " x " << how.split_keys << " order " << how.order << " shared " << how.shared
                 << " heads last " << how.heads_last << " seed " << seed);
    for_each_entry([&](const Entry& entry) {
        for (const bool hardware : {false, true}) {
            Store one = how;
            one.hardware = hardware;
            if (hardware && (!has_bf16_dots(entry) || seen.q_type != Stored::bf16)) continue;
            const EngineResult got = run_store(entry, memory, one, 1);
            INFO(got.text);
            REQUIRE(got.status == ATTEND_OK);
            CHECK(got.clean);
            double largest = 1.0;
            for (const float x : seen.v)
                if (std::isfinite(x)) largest = std::max(largest, static_cast<double>(std::fabs(x)));
            double limit = 4e-6 * largest;
            if (seen.q_type == Stored::f16) limit += largest * 0x1p-11;
            if (seen.q_type == Stored::bf16) limit += largest * (hardware ? 0x1p-7 : 0x1p-8);
            const int64_t at = first_difference(got.output, expected.output, limit);
            if (at >= 0) {
                INFO("output[" << at << "] is " << got.output[static_cast<size_t>(at)] << ", expected "
                               << expected.output[static_cast<size_t>(at)]);
                CHECK(at == -1);
            }
            CHECK((!seen.want_lse || first_difference(got.lse, expected.lse, 1e-5, true) == -1));
            for (const uint32_t workers : {2u, 7u}) {
                const EngineResult other = run_store(entry, memory, one, workers);
                CHECK(other.status == ATTEND_OK);
                CHECK(other.clean);
                CHECK(same_bits(got.output, other.output));
                CHECK(same_bits(got.lse, other.lse));
            }
        }
    });
}

// Three items of a few rows: with q_len 2 the decode engine takes them, with 9 the tile engine.
AttentionCase three_items(int64_t q_len, int64_t keys, uint64_t seed) {
    AttentionCase c;
    c.batch = 3;
    c.q_heads = 4;
    c.kv_heads = 2;
    c.q_len = q_len;
    c.kv_len = keys;
    c.head_dim = 40;
    c.value_dim = 24;
    c.causal = c.per_item = true;
    c.key_lengths = {keys - 3, 0, std::min<int64_t>(keys, 77)};
    c.layout = seed % 2 == 0 ? Strides::packed : Strides::swapped;
    Random random(seed);
    c.fill(random);
    return c;
}

TEST_CASE("store: pages of every size, all kinds of elements, both engines", "[toolkit]") {
    uint64_t seed = 1;
    for (const int64_t q_len : {1, 2, 9})
        for (const int64_t page : {1, 16, 24, 64, 256})
            for (const Kept kept : all_kept) {
                const AttentionCase c = three_items(q_len, page == 256 ? 512 : page == 24 ? 312 : 320, seed);
                check_store(c, {.kept = kept, .page = page, .order = seed, .heads_last = seed % 3 == 0}, seed);
                ++seed;
            }
}

TEST_CASE("store: rows of bf16 and f16 against pages of the same", "[toolkit]") {
    uint64_t seed = 1000;
    for (const int64_t q_len : {1, 2, 9})
        for (const int64_t page : {0, 1, 16, 17, 64})
            for (const Kept kept : {Kept::bf16, Kept::f16, Kept::int8}) {
                AttentionCase c = three_items(q_len, page == 17 ? 340 : 320, seed);
                c.q_type = kept == Kept::f16 ? Stored::f16 : Stored::bf16;
                c.want_lse = seed % 2 == 0;
                check_store(c, {.kept = kept, .page = page, .order = seed}, seed);
                ++seed;
            }
}

TEST_CASE("store: codes with scales of blocks of keys", "[toolkit]") {
    uint64_t seed = 2000;
    for (const int64_t q_len : {1, 9})
        for (const int64_t scale_keys : {1, 16, 48, 128, 1000})
            for (const Kept kept : {Kept::int8, Kept::e4m3}) {
                check_store(three_items(q_len, 300, seed), {.kept = kept, .scale_keys = scale_keys}, seed);
                ++seed;
            }
}

TEST_CASE("store: fixed parts of the keys", "[toolkit]") {
    uint64_t seed = 3000;
    for (const int64_t q_len : {2, 9})
        for (const int64_t splits : {1, 2, 3, 7, 20, 256})
            for (const int64_t page : {0, 16, 64}) {
                AttentionCase c = three_items(q_len, 320, seed);
                check_store(c, {.page = page, .splits = splits, .split_keys = 16, .order = seed}, seed);
                check_store(c, {.kept = Kept::int8, .page = page, .splits = splits, .split_keys = 48}, seed);
                ++seed;
            }
}

TEST_CASE("store: steps of the pipeline", "[toolkit]") {
    uint64_t seed = 4000;
    for (const int64_t q_len : {2, 9})
        for (const int64_t page : {0, 5, 16, 32})
            for (int step = 0; step < 9; ++step) {
                AttentionCase c = three_items(q_len, 320, seed);
                c.use_mask = step == 1;
                c.use_bias = step == 2 || step == 3;
                c.bias_hides = step == 3;
                c.softcap = step == 4 ? 0.7 : 0.0;
                c.hook = step == 5;
                if (step == 6) c.window_left = 37;
                if (step == 7) c.causal = false, c.window_left = 21, c.window_right = 0;
                if (step == 8) c.query_lengths = {1, 2, 0};
                c.wild = step % 2 == 1 ? 0.02 : 0.0;
                Random random(seed);
                c.fill(random);
                const Kept kept = step % 3 == 0 && c.wild == 0.0 ? Kept::e4m3 : step % 3 == 1 ? Kept::f32 : Kept::bf16;
                check_store(c, {.kept = kept, .page = page, .splits = step % 4, .order = seed}, seed);
                ++seed;
            }
}

TEST_CASE("store: many keys", "[toolkit]") {
    uint64_t seed = 5000;
    for (const int64_t page : {0, 16, 40, 64, 512})
        for (const Kept kept : {Kept::f32, Kept::bf16, Kept::int8}) {
            AttentionCase c = three_items(1, page == 40 ? 4200 : 4096, seed);
            c.key_lengths = {4096, 17, 2999};
            c.q_heads = 2 * static_cast<int64_t>(1 + seed % 8);
            c.window_left = seed % 4 == 1 ? 1900 : -1;
            Random random(seed);
            c.fill(random);
            check_store(c, {.kept = kept, .page = page, .scale_keys = 128, .order = seed}, seed);
            if (kept == Kept::bf16) {
                c.q_type = Stored::bf16;
                check_store(c, {.kept = kept, .page = page, .splits = 5, .split_keys = 128, .order = seed}, seed);
            }
            ++seed;
        }
}

TEST_CASE("store: codes and scales that are not finite, behind a mask", "[toolkit]") {
    for (const int64_t q_len : {1, 2, 9})
        for (const int64_t page : {0, 16})
            for (const Kept kept : {Kept::e4m3, Kept::int8}) {
                AttentionCase c = three_items(q_len, 320, 91);
                c.use_mask = true;
                Random random(92);
                c.fill(random);
                for (size_t at = 0; at < c.mask.size(); ++at) c.mask[at] = at % 320 / 16 % 3 != 1;
                const Store how{.kept = kept, .page = page, .scale_keys = 16, .order = 4};
                Memory clean(c, how, 6), poisoned(c, how, 6);
                for (int64_t item = 0; item < c.batch; ++item)
                    for (int64_t key = 0; key < c.key_lengths[static_cast<size_t>(item)]; ++key) {
                        if (key / 16 % 3 != 1) continue;
                        const int64_t first =
                            page > 0 ? clean.table[static_cast<size_t>(item * clean.per_item + key / page)] : item;
                        for (int64_t head = 0; head < c.kv_heads; ++head)
                            for (const bool values : {false, true}) {
                                const int64_t* steps = clean.strides[values];
                                const int64_t row =
                                    first * steps[0] + head * steps[1] + (page > 0 ? key % page : key) * steps[2];
                                std::fill_n(poisoned.rows[values].begin() + row, steps[2], 0x7F);
                                const int64_t groups = page > 0 ? 1 : 20;
                                poisoned.scales[values][static_cast<size_t>((first * c.kv_heads + head) * groups +
                                                                            (page > 0 ? 0 : key / 16))] =
                                    key / 16 % 2 == 0 ? nan_value : std::numeric_limits<float>::infinity();
                            }
                    }
                for_each_entry([&](const Entry& entry) {
                    const EngineResult a = run_store(entry, clean, how, 1), b = run_store(entry, poisoned, how, 2);
                    REQUIRE(a.status == ATTEND_OK);
                    CHECK(std::isfinite(a.output[0]));
                    CHECK(first_difference(b.output, {a.output.begin(), a.output.end()}, 1e-6) == -1);
                    CHECK(same_bits(a.lse, b.lse));
                });
            }
}

TEST_CASE("store: neither the order of the pages nor sharing them changes a bit", "[toolkit]") {
    for (const int64_t q_len : {1, 9})
        for (const int64_t page : {1, 16, 64})
            for (const Kept kept : {Kept::f32, Kept::bf16, Kept::int8}) {
                AttentionCase c = three_items(q_len, 320, 77);
                c.key_lengths = {300, 280, 64};
                const Memory shared(c, {.kept = kept, .page = page, .order = 3, .shared = true}, 5);
                // The same tokens once more, every page for itself; scales depend on the page, so codes are left out.
                AttentionCase same = shared.c;
                if (kept == Kept::int8) same = c;
                const Memory plain(same, {.kept = kept, .page = page}, 5);
                for_each_entry([&](const Entry& entry) {
                    const Store how{.kept = kept, .page = page};
                    const EngineResult a = run_store(entry, plain, how, 1);
                    REQUIRE(a.status == ATTEND_OK);
                    if (kept != Kept::int8) {
                        const EngineResult b = run_store(entry, shared, how, 2);
                        CHECK(same_bits(a.output, b.output));
                        CHECK(same_bits(a.lse, b.lse));
                        return;
                    }
                    // Pages moved as they are.
                    Memory moved(same, how, 5);
                    const int64_t bytes[2] = {moved.strides[0][0], moved.strides[1][0]};
                    std::vector<int32_t> to(static_cast<size_t>(moved.pages));
                    std::iota(to.begin(), to.end(), 0);
                    std::shuffle(to.begin(), to.end(), std::mt19937_64(9));
                    for (int32_t& entry_of : moved.table)
                        if (entry_of >= 0 && entry_of < moved.pages) entry_of = to[static_cast<size_t>(entry_of)];
                    for (const bool values : {false, true})
                        for (int64_t from = 0; from < moved.pages; ++from) {
                            const int64_t there = to[static_cast<size_t>(from)];
                            std::copy_n(plain.rows[values].begin() + from * bytes[values], bytes[values],
                                        moved.rows[values].begin() + there * bytes[values]);
                            const int64_t scales = c.kv_heads * ((page + how.scale_keys - 1) / how.scale_keys);
                            std::copy_n(plain.scales[values].begin() + from * scales, scales,
                                        moved.scales[values].begin() + there * scales);
                        }
                    const EngineResult b = run_store(entry, moved, how, 2);
                    CHECK(same_bits(a.output, b.output));
                    CHECK(same_bits(a.lse, b.lse));
                });
            }
}

TEST_CASE("store: random tables and lengths are refused or computed, and read nothing else", "[toolkit]") {
    for (uint64_t seed = 0; seed < support::rounds(200); ++seed) {
        Random random(9000 + seed);
        AttentionCase c = three_items(random.pick<int64_t>({1, 9}), 64, seed);
        c.key_lengths = {random.whole(-2, 70), random.whole(0, 64), random.whole(0, 64)};
        const Store how{.kept = random.pick({Kept::f32, Kept::int8}), .page = random.pick<int64_t>({1, 16, 32})};
        const std::vector<int64_t> lengths = c.key_lengths;
        for (int64_t& length : c.key_lengths) length = std::clamp<int64_t>(length, 0, 64);
        Memory memory(c, how, seed);
        memory.c.key_lengths = lengths;
        bool good = lengths[0] >= 0 && lengths[0] <= 64;
        const bool wild = random.chance(0.8);
        for (size_t at = 0; wild && at < memory.table.size(); ++at)
            if (random.chance(0.2))
                memory.table[at] = random.pick<int32_t>({-1, INT32_MIN, INT32_MAX, static_cast<int32_t>(memory.pages),
                                                         static_cast<int32_t>(memory.pages) - 1});
        for (int64_t item = 0; item < 3; ++item)
            for (int64_t at = 0; at * how.page < std::min<int64_t>(lengths[static_cast<size_t>(item)], 64); ++at) {
                const int32_t entry = memory.table[static_cast<size_t>(item * memory.per_item + at)];
                good = good && entry >= 0 && entry < memory.pages;
            }
        for_each_entry([&](const Entry& entry) {
            const EngineResult got = run_store(entry, memory, how, 2);
            INFO(got.text);
            CHECK((got.status == ATTEND_OK) == good);
            if (got.status != ATTEND_OK) CHECK(got.status == ATTEND_BAD_SHAPE);
            CHECK(got.clean);
        });
    }
}

TEST_CASE("store: what does not fit is refused", "[toolkit]") {
    const AttentionCase c = three_items(1, 64, 1);
    const Entry& entry = entries[0];
    const auto refused = [&](const Store& made, const Store& run, auto change) {
        Memory memory(c, made, 1);
        change(memory);
        const EngineResult got = run_store(entry, memory, run, 1);
        CHECK(got.status != ATTEND_OK);
        CHECK(!got.text.empty());
        return got.text;
    };
    const auto nothing = [](Memory&) {};
    const Store paged{.page = 16}, int8{.kept = Kept::int8, .page = 16}, plain{};
    refused({.page = 16}, {.kept = Kept::int8, .page = 16}, nothing);  // scales without codes
    refused({.kept = Kept::int8, .page = 16}, {.page = 16}, nothing);  // codes without scales
    refused(paged, paged, [](Memory& memory) { memory.table_shape[0] = 2; });
    refused(paged, paged, [](Memory& memory) { memory.table_tensor.dtype_bits = 64; });
    refused(paged, paged, [](Memory& memory) { memory.table_tensor.ndim = 1; });
    refused(paged, paged, [](Memory& memory) { memory.shape[1][2] = 8; });
    refused(paged, paged, [](Memory& memory) { memory.shape[0][3] = 39; });
    refused(int8, int8, [](Memory& memory) { memory.scale_shape[0] -= 1; });
    refused(int8, int8, [](Memory& memory) { memory.tensors[1].dtype_code = ATTEND_CODE_UINT; });
    refused(plain, {.scale_keys = 16, .splits = -1}, nothing);
    refused({.kept = Kept::bf16}, {.kept = Kept::to_f16}, [](Memory&) {});  // rounding is for float32
    const std::string text =
        refused(paged, paged, [](Memory& memory) { memory.table[1] = static_cast<int32_t>(memory.pages); });
    CHECK(text.find("page " + std::to_string(Memory(c, paged, 1).pages)) != std::string::npos);
}

}  // namespace
}  // namespace attend::test
