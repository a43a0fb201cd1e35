// SPDX-License-Identifier: Apache-2.0
// The k best slots of a memory are those of exact scores rounded once, whatever the tiles, vectors and workers.
#include <algorithm>
#include <functional>
#include <numeric>
#include <string>

#include "unit/toolkit/retrieval_call.hpp"
#include "unit/toolkit/support.hpp"

#define ATTEND_TEST_DECLARE_RETRIEVAL(entry)                                                                    \
    extern "C" uint64_t attend_probe_retrieval_workspace_##entry(const attend::test::RetrievalCall*, uint32_t); \
    extern "C" attend_status attend_probe_retrieval_##entry(const attend_context*, const attend::test::RetrievalCall*);
ATTEND_TEST_ENTRIES(ATTEND_TEST_DECLARE_RETRIEVAL)

namespace attend::test {
namespace {

struct RetrievalEntry {
    const char* name;
    bool runs_here;
    uint64_t (*workspace)(const RetrievalCall*, uint32_t);
    attend_status (*retrieve)(const attend_context*, const RetrievalCall*);
};
#define ATTEND_TEST_RETRIEVAL_ENTRY(entry)                                               \
    RetrievalEntry{#entry, cpu_runs_##entry(), attend_probe_retrieval_workspace_##entry, \
                   attend_probe_retrieval_##entry},
const RetrievalEntry retrieval_entries[] = {ATTEND_TEST_ENTRIES(ATTEND_TEST_RETRIEVAL_ENTRY)};

using Floats = std::vector<float>;
double wide(float x) { return static_cast<double>(x); }

// One memory of one head; queries [1, heads, rows, dim].
struct Memory {
    int64_t heads{1}, rows{1}, slots{1}, dim{1}, value_dim{3}, top_k{1};
    bool normalize{false};
    Floats query, key, value;
    std::vector<uint8_t> valid;  // empty: all
    double scale{0.5};

    void fill(Random& random) {
        const auto draw = [&](Floats& to, int64_t count) {
            to.resize(static_cast<size_t>(count));
            for (float& x : to) x = random.normal();
        };
        draw(query, heads * rows * dim);
        draw(key, slots * dim);
        draw(value, slots * value_dim);
    }
    bool is_valid(int64_t m) const { return valid.empty() || valid[static_cast<size_t>(m)] != 0; }
    int64_t places() const { return top_k == 0 ? slots : top_k; }
};

struct Found {
    Floats output, lse, weights;
    std::vector<int32_t> indices;
    attend_status status{};
    std::string error;
};

// Sums in double, one rounding to float; largest first, ties to the smaller slot.
Found expected(const Memory& memory) {
    Found to;
    for (int64_t row = 0; row < memory.heads * memory.rows; ++row) {
        const float* q = memory.query.data() + row * memory.dim;
        std::vector<std::pair<float, int32_t>> list;
        for (int64_t m = 0; m < memory.slots; ++m) {
            if (!memory.is_valid(m)) continue;
            const float* k = memory.key.data() + m * memory.dim;
            double dot = 0, qq = 1e-6, kk = 1e-6;
            for (int64_t d = 0; d < memory.dim; ++d) {
                dot += wide(q[d]) * wide(k[d]);
                qq += wide(q[d]) * wide(q[d]);
                kk += wide(k[d]) * wide(k[d]);
            }
            if (memory.normalize) dot /= std::sqrt(qq) * std::sqrt(kk);
            list.emplace_back(static_cast<float>(dot), static_cast<int32_t>(m));
        }
        std::stable_sort(list.begin(), list.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
        list.resize(std::min(list.size(), static_cast<size_t>(memory.places())));
        double sum = 0;
        for (const auto& [score, m] : list) sum += std::exp(memory.scale * (wide(score) - wide(list[0].first)));
        std::vector<double> o(static_cast<size_t>(memory.value_dim), 0.0);
        for (int64_t at = 0; at < memory.places(); ++at) {
            const bool used = at < static_cast<int64_t>(list.size());
            const auto [score, m] = used ? list[static_cast<size_t>(at)] : std::pair{0.0f, -1};
            const double weight = used ? std::exp(memory.scale * (wide(score) - wide(list[0].first))) / sum : 0.0;
            to.indices.push_back(m);
            to.weights.push_back(static_cast<float>(weight));
            for (size_t d = 0; used && d < o.size(); ++d)
                o[d] += weight * wide(memory.value[static_cast<size_t>(m * memory.value_dim) + d]);
        }
        to.lse.push_back(list.empty() ? -std::numeric_limits<float>::infinity()
                                      : static_cast<float>(memory.scale * wide(list[0].first) + std::log(sum)));
        for (const double x : o) to.output.push_back(static_cast<float>(x));
    }
    return to;
}

Found found(const RetrievalEntry& entry, const Memory& memory, uint32_t workers, Strides kind) {
    const auto shape = [&](int64_t last) { return std::vector<int64_t>{1, memory.heads, memory.rows, last}; };
    const auto count = static_cast<size_t>(memory.heads * memory.rows);
    Strided<float> query(shape(memory.dim), kind, memory.query),
        key({1, 1, memory.slots, memory.dim}, kind, memory.key),
        value({1, 1, memory.slots, memory.value_dim}, kind, memory.value),
        output(shape(memory.value_dim), kind, Floats(count * static_cast<size_t>(memory.value_dim))),
        lse({1, memory.heads, memory.rows}, kind, Floats(count)),
        weights(shape(memory.places()), kind, Floats(count * static_cast<size_t>(memory.places())));
    Strided<int32_t> indices(shape(memory.places()), kind,
                             std::vector<int32_t>(count * static_cast<size_t>(memory.places())));
    Strided<uint8_t> valid(
        {1, memory.slots}, kind,
        memory.valid.empty() ? std::vector<uint8_t>(static_cast<size_t>(memory.slots), 1) : memory.valid);
    const attend_tensor q = query.tensor(), k = key.tensor(), v = value.tensor(), o = output.tensor(), l = lse.tensor(),
                        i = indices.tensor(), w = weights.tensor(), shown = valid.tensor();
    const std::vector<double> scale(static_cast<size_t>(memory.heads), memory.scale);
    const RetrievalCall call{&q,
                             &k,
                             &v,
                             nullptr,
                             memory.valid.empty() ? nullptr : &shown,
                             &o,
                             &l,
                             &i,
                             &w,
                             scale.data(),
                             memory.normalize,
                             memory.top_k};
    LoopHost host(workers);
    Scratch scratch(entry.workspace(&call, workers));
    ErrorText error;
    const attend_context context{host.get(), nullptr, scratch.data(), scratch.bytes(), &error.error, workers, 0};
    Found to;
    to.status = entry.retrieve(&context, &call);
    to.error = error.text;
    to.output = output.values(), to.lse = lse.values(), to.weights = weights.values(), to.indices = indices.values();
    CHECK(scratch.guard_untouched());
    CHECK(output.gaps_untouched());
    CHECK(indices.gaps_untouched());
    return to;
}

bool close(const Floats& got, const Floats& wanted) {
    return first_difference(got, std::vector<double>(wanted.begin(), wanted.end()), 1e-5, true) < 0;
}

// On every instruction set, with one worker and three: the slots of the oracle, in its order.
void check(const Memory& memory, Strides kind = Strides::packed) {
    const Found wanted = expected(memory);
    Floats first;
    for (const RetrievalEntry& entry : retrieval_entries) {
        if (!entry.runs_here) continue;
        INFO("instruction set " << entry.name << ": " << memory.rows << " queries, " << memory.slots << " slots of "
                                << memory.dim << ", the best " << memory.top_k);
        const Found one = found(entry, memory, 1, kind), three = found(entry, memory, 3, kind);
        REQUIRE(one.status == ATTEND_OK);
        CHECK(one.indices == wanted.indices);
        CHECK(close(one.weights, wanted.weights));
        CHECK(close(one.output, wanted.output));
        CHECK(close(one.lse, wanted.lse));
        CHECK(three.indices == one.indices);
        CHECK(same_bits(three.output, one.output));
        CHECK(same_bits(three.weights, one.weights));
    }
}

}  // namespace

TEST_CASE("retrieval: the best slots of random memories", "[toolkit]") {
    Random random(11);
    for (int round = 0; round < 60; ++round) {
        Memory memory;
        memory.heads = random.whole(1, 3), memory.rows = random.whole(1, 60), memory.slots = random.whole(1, 700);
        memory.dim = random.whole(1, 70), memory.value_dim = random.whole(1, 40);
        memory.top_k = random.chance(0.2) ? 0 : random.pick<int64_t>({1, 2, 7, 32, 100, 900});
        memory.normalize = random.chance(0.5);
        memory.fill(random);
        if (random.chance(0.5)) {
            memory.valid.resize(static_cast<size_t>(memory.slots));
            for (uint8_t& x : memory.valid) x = random.chance(0.6) ? 1 : 0;
        }
        check(memory, random.pick({Strides::packed, Strides::reversed, Strides::spread}));
    }
}

TEST_CASE("retrieval: equal scores go to the smaller slot", "[toolkit]") {
    Random random(12);
    for (const int64_t distinct : {1, 2, 5, 40})
        for (const int64_t top_k : {1, 8, 50, 128})
            for (const bool normalize : {false, true}) {
                Memory memory;
                memory.rows = 21, memory.slots = 1000, memory.dim = 16, memory.top_k = top_k;
                memory.normalize = normalize;
                memory.fill(random);
                for (int64_t m = distinct; m < memory.slots; ++m)  // the same few keys again and again
                    std::copy_n(memory.key.begin() + m % distinct * memory.dim, memory.dim,
                                memory.key.begin() + m * memory.dim);
                check(memory);
            }
    Memory zeros;  // nothing but ties, of both signs of zero
    zeros.rows = 5, zeros.slots = 300, zeros.dim = 4, zeros.top_k = 33;
    zeros.fill(random);
    for (size_t at = 0; at < zeros.key.size(); ++at) zeros.key[at] = at % 3 == 0 ? -0.0f : 0.0f;
    check(zeros);
}

TEST_CASE("retrieval: sums that cancel in float", "[toolkit]") {
    Random random(13);
    for (const int64_t top_k : {1, 6, 40, 200}) {
        Memory memory;
        memory.rows = 30, memory.slots = 900, memory.dim = 9, memory.top_k = top_k;
        memory.fill(random);
        // 2^20 - 2^20 hides what distinguishes the slots from a float sum; exactly, they differ by multiples of 2^-10.
        for (int64_t row = 0; row < memory.rows; ++row) {
            float* q = memory.query.data() + row * memory.dim;
            std::fill_n(q, memory.dim, 0.0f);
            q[0] = q[8] = 1024.0f;
            q[4] = 1.0f;
        }
        for (int64_t m = 0; m < memory.slots; ++m) {
            float* k = memory.key.data() + m * memory.dim;
            std::fill_n(k, memory.dim, 0.0f);
            k[0] = 1024.0f, k[8] = -1024.0f;
            k[4] = static_cast<float>(random.whole(-300, 300)) / 1024.0f;
        }
        check(memory);
    }
}

TEST_CASE("retrieval: one rounding to float makes ties", "[toolkit]") {
    // 1 + m 2^-30 is 1 in float: all slots tie, though their exact sums differ; 1 + 2^-23 does not.
    Memory memory;
    memory.rows = 17, memory.slots = 500, memory.dim = 2, memory.top_k = 20, memory.value_dim = 1;
    memory.query.assign(34, 1.0f);
    for (int64_t m = 0; m < memory.slots; ++m) {
        memory.key.push_back(1.0f);
        memory.key.push_back(static_cast<float>(std::ldexp(static_cast<double>(m % 16), -30)));
        memory.value.push_back(static_cast<float>(m));
    }
    check(memory);
    std::vector<int32_t> first(20);
    std::iota(first.begin(), first.end(), 0);
    CHECK(std::equal(first.begin(), first.end(), expected(memory).indices.begin()));
    memory.key[2 * 77 + 1] = 0x1p-23f;
    check(memory);
    CHECK(expected(memory).indices[0] == 77);
}

TEST_CASE("retrieval: scores beyond the range of float sums", "[toolkit]") {
    Random random(14);
    for (const bool normalize : {false, true}) {
        Memory memory;
        memory.rows = 20, memory.slots = 400, memory.dim = 8, memory.top_k = 10, memory.normalize = normalize;
        memory.fill(random);
        for (size_t at = 0; at < memory.key.size(); ++at) memory.key[at] *= at % 16 < 8 ? 1e19f : 1e-30f;
        memory.scale = 1e-19;
        check(memory);
    }
}

TEST_CASE("retrieval: NaN", "[toolkit]") {
    Random random(15);
    Memory memory;
    memory.rows = 9, memory.slots = 300, memory.dim = 12, memory.top_k = 5;
    memory.fill(random);
    memory.valid.assign(300, 1);
    memory.key[12 * 201 + 3] = nan_value;
    for (const RetrievalEntry& entry : retrieval_entries) {
        if (!entry.runs_here) continue;
        const Found refused = found(entry, memory, 2, Strides::packed);
        CHECK(refused.status == ATTEND_NUMERIC);
        CHECK(refused.error.find("slot 201") != std::string::npos);
    }
    memory.valid[201] = 0;  // a slot that is not valid may hold anything
    std::fill_n(memory.value.begin() + 201 * memory.value_dim, memory.value_dim, nan_value);
    check(memory);
    memory.valid.assign(300, 0);  // no slot at all: zeros, minus infinity, nothing chosen
    check(memory);
}

}  // namespace attend::test
