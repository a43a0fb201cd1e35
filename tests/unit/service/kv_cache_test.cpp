// SPDX-License-Identifier: Apache-2.0
// Caches of keys and values: random appends, cuts, copies and steps against rows in plain vectors and softmax in double, with
// every storage, in pages and contiguous, by the built-in mechanism and by the example of the SDK.
#include "attend/kv_cache.hpp"

#include <thread>

#include "support/calls.hpp"

namespace {

using attend::DType;
using attend::KvCache;
using attend::KvCacheSettings;
using attend::Tensor;
using support::normal;
using support::Random;
using support::same_bits;

constexpr std::int64_t heads = 6, kv_heads = 2, head_dim = 20, value_dim = 12;

attend::AttentionService& service_with_example(const std::string& backend = "auto", int threads = 2) {
    static std::map<std::pair<std::string, int>, std::unique_ptr<attend::AttentionService>> services;
    auto& slot = services[{backend, threads}];
    if (!slot) {
        attend::ServiceSettings settings;
        settings.config = attend::load_default_config().config;
        settings.config.service.backend = backend;
        settings.config.service.threads = threads;
        settings.built_in_dir = std::filesystem::path(ATTEND_BINARY_DIR) / "plugins";
        settings.plugin_files = {std::filesystem::path(ATTEND_BINARY_DIR) /
                                 "tests/conformance/plugins/libattend_conformance_cache.so"};
        auto opened = attend::AttentionService::open(std::move(settings));
        if (!opened) FAIL(opened.error().message);
        slot = std::move(*opened);
    }
    return *slot;
}

struct Kind {
    std::string mechanism, storage;
    std::int64_t page_size, pages;
};
std::vector<Kind> kinds() {
    std::vector<Kind> list{{"plain-decoding", "fp32", 0, 0}};
    for (const char* storage : {"fp32", "bf16", "fp16", "int8"})
        for (const std::int64_t page : {0, 1, 16, 64})
            list.push_back({"flash-decoding", storage, page, page == 0 ? 0 : page == 1 ? 150 : 200 / page + 3});
    return list;
}
std::string text(const Kind& kind) {
    return kind.mechanism + " " + kind.storage + " page " + std::to_string(kind.page_size);
}
KvCacheSettings settings_of(const Kind& kind, std::int64_t sequences = 4, std::int64_t capacity = 90) {
    KvCacheSettings settings;
    settings.mechanism = kind.mechanism;
    settings.heads = heads;
    settings.kv_heads = kv_heads;
    settings.head_dim = head_dim;
    settings.value_dim = value_dim;
    settings.storage = kind.storage;
    settings.sequences = sequences;
    settings.capacity = capacity;
    settings.page_size = kind.page_size;
    settings.pages = kind.pages;
    return settings;
}
KvCache open(const Kind& kind, attend::AttentionService& service, std::int64_t sequences = 4,
             std::int64_t capacity = 90) {
    auto cache = KvCache::open(service, settings_of(kind, sequences, capacity));
    if (!cache) FAIL(text(kind) << ": " << cache.error().message);
    return std::move(*cache);
}

// What the cache keeps of a row of `width` numbers.
std::vector<double> kept(const float* row, std::int64_t width, const std::string& storage) {
    std::vector<double> out(row, row + width);
    if (storage == "fp32") return out;
    if (storage == "int8") {
        float largest = 0;
        for (std::int64_t at = 0; at < width; ++at) largest = std::max(largest, std::abs(row[at]));
        const float scale = largest / 127.0f, inverse = 127.0f / largest;
        for (std::int64_t at = 0; at < width; ++at) {
            const float product = row[at] * inverse;
            out[static_cast<std::size_t>(at)] = static_cast<double>(std::nearbyint(product) * scale);
        }
        return out;
    }
    Tensor tensor = Tensor::allocate(DType::f32, {width}).value();
    std::copy(row, row + width, tensor.as<float>());
    const Tensor narrow = convert(tensor, storage == "bf16" ? DType::bf16 : DType::f16).value();
    const std::vector<float> back = support::values(convert(narrow, DType::f32).value());
    return {back.begin(), back.end()};
}

// Rows of a sequence: [key head][row][width].
struct Rows {
    std::vector<std::vector<double>> keys[kv_heads], values[kv_heads];
    void append(const Tensor& key, const Tensor& value, std::int64_t item, const std::string& storage) {
        const std::int64_t count = key.shape[2];
        for (std::int64_t head = 0; head < kv_heads; ++head)
            for (std::int64_t row = 0; row < count; ++row) {
                const std::int64_t at = (item * kv_heads + head) * count + row;
                keys[head].push_back(kept(key.as<float>() + at * head_dim, head_dim, storage));
                values[head].push_back(kept(value.as<float>() + at * value_dim, value_dim, storage));
            }
    }
    [[nodiscard]] std::int64_t length() const { return static_cast<std::int64_t>(keys[0].size()); }
    void cut(std::int64_t to) {
        for (std::int64_t head = 0; head < kv_heads; ++head) {
            keys[head].resize(static_cast<std::size_t>(to));
            values[head].resize(static_cast<std::size_t>(to));
        }
    }
};

struct Expected {
    std::vector<double> output, lse;
};
// The last rows of each sequence, causal.
Expected decode(const std::vector<Rows>& model, const std::vector<std::int64_t>& sequences, const Tensor& query) {
    Expected expected;
    const std::int64_t rows = query.shape[2];
    for (std::size_t item = 0; item < sequences.size(); ++item)
        for (std::int64_t head = 0; head < heads; ++head)
            for (std::int64_t row = 0; row < rows; ++row) {
                const Rows& of = model[static_cast<std::size_t>(sequences[item])];
                const std::int64_t kv = head * kv_heads / heads,
                                   visible = std::max<std::int64_t>(of.length() - rows + row + 1, 0);
                const float* q =
                    query.as<float>() + ((static_cast<std::int64_t>(item) * heads + head) * rows + row) * head_dim;
                std::vector<double> scores;
                double most = -HUGE_VAL, sum = 0;
                for (std::int64_t j = 0; j < visible; ++j) {
                    double score = 0;
                    for (std::int64_t c = 0; c < head_dim; ++c)
                        score += static_cast<double>(q[c]) *
                                 of.keys[kv][static_cast<std::size_t>(j)][static_cast<std::size_t>(c)];
                    scores.push_back(score / std::sqrt(static_cast<double>(head_dim)));
                    most = std::max(most, scores.back());
                }
                std::vector<double> out(value_dim, 0.0);
                for (std::size_t j = 0; j < scores.size(); ++j) {
                    const double weight = std::exp(scores[j] - most);
                    sum += weight;
                    for (std::size_t c = 0; c < out.size(); ++c) out[c] += weight * of.values[kv][j][c];
                }
                for (double& number : out) expected.output.push_back(sum > 0 ? number / sum : 0.0);
                expected.lse.push_back(sum > 0 ? most + std::log(sum) : -HUGE_VAL);
            }
    return expected;
}

void check_step(const KvCache& cache, const std::vector<Rows>& model, const std::vector<std::int64_t>& sequences,
                std::int64_t rows, Random& random) {
    const Tensor query = normal(random, {static_cast<std::int64_t>(sequences.size()), heads, rows, head_dim});
    auto step = cache.step(sequences, query, true);
    if (!step) FAIL(step.error().message);
    const Expected expected = decode(model, sequences, query);
    CHECK(support::difference(support::values(step->output), expected.output) < 2e-5);
    CHECK(support::difference(support::values(*step->lse), expected.lse) < 2e-5);
}

std::vector<std::int64_t> some_sequences(Random& random, std::int64_t all) {
    std::vector<std::int64_t> chosen;
    for (std::int64_t at = 0; at < all; ++at)
        if (random.below(2) == 0) chosen.push_back(at);
    if (chosen.empty()) chosen.push_back(random.below(all));
    std::shuffle(chosen.begin(), chosen.end(), random.engine);
    return chosen;
}

bool holds(const std::string& sentence, const std::string& part) { return sentence.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("kv-cache: random appends, cuts, copies and steps agree with plain rows") {
    for (const std::string& backend : support::backends())
        for (const Kind& kind : kinds()) {
            INFO(text(kind) << " on " << backend);
            Random random(77);
            KvCache cache = open(kind, service_with_example(backend));
            std::vector<Rows> model(4);
            int appended = 0, refused = 0, stepped = 0;
            for (int round = 0; round < 60; ++round) {
                const std::int64_t sequence = random.below(4), other = random.below(4);
                Rows& rows = model[static_cast<std::size_t>(sequence)];
                switch (random.below(5)) {
                    case 0:
                    case 1: {
                        const auto chosen = some_sequences(random, 4);
                        const std::int64_t more = random.below(3) == 0 ? 1 + random.below(40) : 1;
                        const auto count = static_cast<std::int64_t>(chosen.size());
                        const Tensor key = normal(random, {count, kv_heads, more, head_dim});
                        const Tensor value = normal(random, {count, kv_heads, more, value_dim});
                        const std::int64_t free_before = cache.facts().free_pages;
                        const auto done = cache.append(chosen, key, value);
                        if (done) {
                            ++appended;
                            for (std::int64_t at = 0; at < count; ++at)
                                model[static_cast<std::size_t>(chosen[static_cast<std::size_t>(at)])].append(
                                    key, value, at, kind.storage);
                        } else {
                            ++refused;
                            CHECK(done.error().code == attend::ErrorCode::limit);
                            CHECK(cache.facts().free_pages == free_before);
                        }
                        break;
                    }
                    case 2: {
                        const std::int64_t to = random.below(rows.length() + 1);
                        REQUIRE(cache.truncate(sequence, random.below(2) == 0 ? to : rows.length()));
                        const std::int64_t now = cache.length(sequence).value();
                        rows.cut(now);
                        break;
                    }
                    case 3:
                        if (model[static_cast<std::size_t>(other)].length() == 0) {
                            REQUIRE(cache.fork(sequence, other));
                            model[static_cast<std::size_t>(other)] = rows;
                        } else {
                            CHECK_FALSE(cache.fork(sequence, other));
                        }
                        break;
                    default:
                        ++stepped;
                        check_step(cache, model, {random.below(4), random.below(4), random.below(4)},
                                   1 + random.below(3), random);
                }
                for (std::int64_t at = 0; at < 4; ++at)
                    REQUIRE(cache.length(at).value() == model[static_cast<std::size_t>(at)].length());
            }
            CHECK(appended > 5);
            CHECK(stepped > 3);
            for (std::int64_t at = 0; at < 4; ++at) REQUIRE(cache.truncate(at, 0));
            const attend::KvCacheFacts facts = cache.facts();
            CHECK(facts.free_pages == facts.pages);
            CHECK(facts.used_bytes == 0);
        }
}

TEST_CASE("kv-cache: a prompt in pieces and at once are the same bits, for any number of threads") {
    for (const Kind& kind : kinds()) {
        INFO(text(kind));
        Random random(5);
        const Tensor key = normal(random, {1, kv_heads, 71, head_dim}),
                     value = normal(random, {1, kv_heads, 71, value_dim});
        const Tensor query = normal(random, {1, heads, 2, head_dim});
        const auto part = [](const Tensor& whole, std::int64_t from, std::int64_t count) {
            Tensor view = whole;
            view.data = whole.as<float>() + from * whole.strides[2];
            view.shape[2] = count;
            return view;
        };
        Tensor first;
        for (const int threads : {1, 2, 5}) {
            KvCache whole = open(kind, service_with_example("auto", threads));
            KvCache pieces = open(kind, service_with_example("auto", threads));
            REQUIRE(whole.append({2}, key, value));
            for (const auto& [from, count] : {std::pair<std::int64_t, std::int64_t>{0, 33}, {33, 1}, {34, 37}})
                REQUIRE(pieces.append({2}, part(key, from, count), part(value, from, count)));
            const Tensor a = whole.step({2}, query).value().output, b = pieces.step({2}, query).value().output;
            CHECK(same_bits(a, b));
            if (first.data != nullptr) CHECK(same_bits(a, first));
            first = a;
        }
    }
}

TEST_CASE("kv-cache: a copy shares pages until one of the two goes on") {
    Random random(9);
    const Kind kind{"flash-decoding", "fp32", 16, 9};
    KvCache cache = open(kind, service_with_example());
    const auto rows = [&](std::int64_t count) {
        return std::pair(normal(random, {1, kv_heads, count, head_dim}),
                         normal(random, {1, kv_heads, count, value_dim}));
    };
    const auto prompt = rows(40);  // two whole pages and a half
    REQUIRE(cache.append({0}, prompt.first, prompt.second));
    CHECK(cache.facts().free_pages == 6);
    REQUIRE(cache.fork(0, 1));
    REQUIRE(cache.fork(0, 2));
    CHECK(cache.facts().free_pages == 6);
    const auto next = rows(1);
    REQUIRE(cache.append({1}, next.first, next.second));  // its own copy of the half page
    CHECK(cache.facts().free_pages == 5);
    REQUIRE(cache.truncate(0, 0));
    CHECK(cache.facts().free_pages == 5);                 // the pages are still those of the copies
    REQUIRE(cache.append({2}, next.first, next.second));  // the last one that shares the half page keeps it
    CHECK(cache.facts().free_pages == 5);
    const Tensor query = normal(random, {1, heads, 1, head_dim});
    CHECK(same_bits(cache.step({1}, query).value().output, cache.step({2}, query).value().output));
    REQUIRE(cache.truncate(1, 0));
    CHECK(cache.facts().free_pages == 6);
    REQUIRE(cache.truncate(2, 0));
    CHECK(cache.facts().free_pages == 9);
}

TEST_CASE("kv-cache: what fails changes nothing and says why") {
    Random random(3);
    const Kind kind{"flash-decoding", "int8", 16, 4};
    KvCache cache = open(kind, service_with_example());
    const auto key = [&](std::int64_t n, std::int64_t rows) { return normal(random, {n, kv_heads, rows, head_dim}); };
    const auto value = [&](std::int64_t n, std::int64_t rows) {
        return normal(random, {n, kv_heads, rows, value_dim});
    };
    REQUIRE(cache.append({0}, key(1, 20), value(1, 20)));
    const auto refused = [&](const attend::Result<void>& done, attend::ErrorCode code, const char* part) {
        REQUIRE_FALSE(done);
        INFO(done.error().message);
        CHECK(done.error().code == code);
        CHECK(holds(done.error().message, part));
        CHECK(holds(done.error().message, "accepted"));
        CHECK(cache.length(0).value() == 20);
        CHECK(cache.length(1).value() == 0);
        CHECK(cache.facts().free_pages == 2);
    };
    using enum attend::ErrorCode;
    refused(cache.append({0, 1}, key(2, 30), value(2, 30)), limit, "need 4 pages");
    refused(cache.append({1}, key(1, 91), value(1, 91)), limit, "90");
    refused(cache.append({0, 0}, key(2, 1), value(2, 1)), input, "sequence 0");
    refused(cache.append({4}, key(1, 1), value(1, 1)), input, "sequence 4");
    refused(cache.append({-1}, key(1, 1), value(1, 1)), input, "sequence -1");
    refused(cache.append({1}, key(1, 2), value(1, 3)), shape, "3");
    refused(cache.append({1}, value(1, 2), value(1, 2)), shape, "key");
    refused(cache.truncate(0, 21), input, "21");
    refused(cache.truncate(0, -1), input, "-1");
    refused(cache.truncate(7, 0), input, "sequence 7");
    refused(cache.fork(1, 0), internal, "holds 20 keys");
    refused(cache.fork(0, 9), input, "sequence 9");
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
        Tensor poisoned = key(1, 3);
        poisoned.as<float>()[head_dim + 4] = bad;
        refused(cache.append({1}, poisoned, value(1, 3)), nonfinite, "NaN or infinity");
    }
    CHECK_FALSE(cache.step({0}, normal(random, {1, heads, 1, head_dim + 1})));
    CHECK_FALSE(cache.step({9}, normal(random, {1, heads, 1, head_dim})));
    CHECK_FALSE(cache.length(4));
    REQUIRE(cache.step({1}, normal(random, {1, heads, 1, head_dim}), true));
    for (const float lse : support::values(*cache.step({1}, normal(random, {1, heads, 1, head_dim}), true).value().lse))
        CHECK(lse == -HUGE_VALF);
}

TEST_CASE("kv-cache: settings that no cache can have") {
    attend::AttentionService& service = service_with_example();
    const Kind kind{"flash-decoding", "fp32", 16, 8};
    const auto refused = [&](auto change, const char* part) {
        KvCacheSettings settings = settings_of(kind);
        change(settings);
        const auto cache = KvCache::open(service, settings);
        REQUIRE_FALSE(cache);
        INFO(cache.error().message);
        CHECK(holds(cache.error().message, part));
        const bool says = holds(cache.error().message, "accepted") || holds(cache.error().message, "did you mean") ||
                          holds(cache.error().message, "it has: ");
        CHECK(says);
    };
    refused([](KvCacheSettings& s) { s.capacity = 0; }, "capacity is 0");
    refused([](KvCacheSettings& s) { s.sequences = 0; }, "sequences is 0");
    refused([](KvCacheSettings& s) { s.pages = 0; }, "pages is 0");
    refused([](KvCacheSettings& s) { s.page_size = -1; }, "page_size is -1");
    refused([](KvCacheSettings& s) { s.heads = 5; }, "num_q_heads 5");
    refused([](KvCacheSettings& s) { s.storage = "fp8"; }, "\"fp8\"");
    refused([](KvCacheSettings& s) { s.precision = "int8"; }, "\"int8\"");
    refused([](KvCacheSettings& s) { s.mechanism = "linear-attention"; }, "flash-decoding");
    refused([](KvCacheSettings& s) { s.mechanism = "flash-decodin"; }, "flash-decoding");
    refused([](KvCacheSettings& s) { s.options = {{"softcap", -1}}; }, "softcap");
    refused([](KvCacheSettings& s) { s.options = {{"no_such", 1}}; }, "no_such");
    refused([](KvCacheSettings& s) { s.capacity = s.pages = s.page_size = s.sequences = 2000000000; }, "");
}

TEST_CASE("kv-cache: steps on several threads at a time") {
    Random random(8);
    KvCache cache = open({"flash-decoding", "bf16", 16, 24}, service_with_example());
    const Tensor key = normal(random, {4, kv_heads, 50, head_dim}),
                 value = normal(random, {4, kv_heads, 50, value_dim});
    REQUIRE(cache.append({0, 1, 2, 3}, key, value));
    const Tensor query = normal(random, {4, heads, 1, head_dim});
    const Tensor expected = cache.step({3, 2, 1, 0}, query).value().output;
    std::vector<std::thread> threads;
    std::atomic<int> agree{0};
    for (int thread = 0; thread < 4; ++thread)
        threads.emplace_back([&] {
            for (int round = 0; round < 25; ++round)
                agree += same_bits(cache.step({3, 2, 1, 0}, query).value().output, expected);
        });
    for (std::thread& thread : threads) thread.join();
    CHECK(agree == 100);
}

TEST_CASE("kv-cache: a type that no row can be written in is refused at the boundary") {
    const auto mechanism = service_with_example().registry()->get("flash-decoding", "test").value();
    const auto* functions = static_cast<const attend_kv_cache_extension*>(
        mechanism->functions->get_extension(mechanism->lib, ATTEND_EXT_KV_CACHE));
    REQUIRE(functions != nullptr);
    attend_plan_desc steps{};
    steps.struct_size = sizeof steps;
    steps.num_q_heads = steps.num_kv_heads = 1;
    steps.head_dim = steps.value_dim = 8;
    steps.max_workers = 1;
    for (const std::uint64_t dtype :
         {ATTEND_F8_E4M3, ATTEND_U8, ATTEND_F64, ATTEND_I32, ATTEND_F32 | ATTEND_I8, 0ull}) {
        attend_kv_cache_desc desc{};
        desc.struct_size = sizeof desc;
        desc.dtype = static_cast<std::uint32_t>(dtype);
        desc.num_sequences = 1;
        desc.capacity = 4;
        attend_kv_cache* cache = nullptr;
        CHECK(functions->create(mechanism->lib, &steps, &desc, &cache, nullptr) == ATTEND_INVALID_ARGUMENT);
        CHECK(cache == nullptr);
    }
}
