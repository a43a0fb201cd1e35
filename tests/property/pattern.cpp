// SPDX-License-Identifier: Apache-2.0
// The keys that a mechanism says it reads are those whose weights are not zero, for every mechanism with a key pattern,
// every option variant of its spec and several extents.
#include <cstdlib>
#include <iostream>
#include <set>

#include "attend/config/names.hpp"
#include "specs/inputs.hpp"
#include "support/calls.hpp"

namespace {

using namespace support;
using attend::ForwardInputs;
using attend::NamedValues;
using attend::Tensor;
using Keys = std::set<std::int64_t>;

// Rows of a head, `at_once` together: the keys that all of them read, and those that some may read.
struct Shown {
    std::vector<Keys> certain, possible;
    bool disjoint{true};
};
attend::Result<Shown> shown(const std::string& mechanism, const attend::CallSizes& sizes, const NamedValues& options,
                            std::int64_t head, std::int64_t at_once) {
    Shown rows{std::vector<Keys>(static_cast<std::size_t>(sizes.q_len)),
               std::vector<Keys>(static_cast<std::size_t>(sizes.q_len)), true};
    const auto done = service().visit_pattern(
        mechanism, sizes, options, {head, 0, sizes.q_len, at_once}, [&](const attend::PatternRange& range) {
            for (std::int64_t row = range.first_row; row < range.first_row + range.num_rows; ++row)
                for (std::int64_t j = range.begin; j < range.end; j += range.step) {
                    const auto at = static_cast<std::size_t>(row);
                    rows.disjoint = rows.possible[at].insert(j).second && rows.disjoint;
                    if (!range.partial) rows.certain[at].insert(j);
                }
        });
    if (!done) return done.error();
    return rows;
}

bool within(const Keys& inner, const Keys& outer) {
    return std::includes(outer.begin(), outer.end(), inner.begin(), inner.end());
}

struct Extents {
    std::int64_t heads, kv_heads, q_len, kv_len;
};

// Zero queries: all keys that a row sees weigh the same.
std::vector<Keys> weighed(const ForwardInputs& inputs, const std::string& mechanism, const NamedValues& options,
                          std::int64_t head) {
    const Tensor weights = *run(service(), inputs, mechanism, options, false, true).scores;
    std::vector<Keys> rows;
    for (std::int64_t i = 0; i < weights.shape[2]; ++i) {
        rows.emplace_back();
        // Extra keys behind those of the call, such as hubs, are no part of a pattern.
        for (std::int64_t j = 0; j < inputs.key->shape[2]; ++j)
            if (weights.as<const float>()[head * weights.strides[1] + i * weights.strides[2] + j * weights.strides[3]] >
                0.0f)
                rows.back().insert(j);
    }
    return rows;
}

}  // namespace

TEST_CASE("the keys that a mechanism shows are the keys that have weights") {
    const char* only = std::getenv("ATTEND_TEST_MECHANISM");
    for (const auto& mechanism : service().registry()->by_category("sparse")) {
        if (only != nullptr && mechanism->name != only) continue;
        const specs::Spec& spec = specs::spec_of(mechanism->name);
        std::vector<NamedValues> variants{{}};
        variants.insert(variants.end(), spec.variants.begin(), spec.variants.end());
        std::int64_t compared = 0;
        for (const NamedValues& options : variants)
            for (const Extents& extents : {Extents{2, 2, 40, 40}, Extents{4, 2, 70, 70}, Extents{3, 1, 9, 53}}) {
                if (spec.fits && !spec.fits(options, extents.q_len, extents.kv_len)) continue;
                attend::CallSizes sizes;
                sizes.heads = extents.heads;
                sizes.kv_heads = extents.kv_heads;
                sizes.q_len = extents.q_len;
                sizes.kv_len = extents.kv_len;
                Random random(7);
                ForwardInputs inputs = make_inputs(
                    spec, random, {1, extents.heads, extents.kv_heads, extents.q_len, extents.kv_len, 64, 64});
                std::fill_n(inputs.query.as<float>(), inputs.query.size(), 0.0f);
                for (std::int64_t head = 0; head < extents.heads; ++head) {
                    const auto single = shown(mechanism->name, sizes, options, head, 1);
                    if (!single) break;  // options that need tensors, or have no pattern
                    const std::vector<Keys> wanted = weighed(inputs, mechanism->name, options, head);
                    attend::Json object = attend::Json::object();
                    for (const auto& [name, value] : options) object.set(name, value);
                    INFO(mechanism->name << " " << attend::write_json(object) << " head " << head << ", "
                                         << extents.q_len << " queries, " << extents.kv_len << " keys");
                    CHECK(single->disjoint);
                    CHECK(single->certain == wanted);
                    CHECK(single->possible == wanted);
                    for (const std::int64_t at_once : {std::int64_t{0}, std::int64_t{7}, extents.q_len}) {
                        const auto tiles = shown(mechanism->name, sizes, options, head, at_once);
                        REQUIRE(tiles.ok());
                        CHECK(tiles->disjoint);
                        for (std::size_t row = 0; row < wanted.size(); ++row)
                            if (!within(tiles->certain[row], wanted[row]) || !within(wanted[row], tiles->possible[row]))
                                FAIL_CHECK("row " << row << ", " << at_once << " rows at once");
                    }
                    ++compared;
                }
            }
        std::cout << mechanism->name << ": " << compared << " patterns compared\n";
        CHECK(compared > 0);
    }
}
