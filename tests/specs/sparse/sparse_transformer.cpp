// SPDX-License-Identifier: Apache-2.0
// Two factors, in steps of the stride or in blocks with summary columns.
#include <cmath>

#include "specs/spec.hpp"

namespace {

bool visible(const specs::Call& call, const specs::Place& at) {
    const attend::Tensor& key = call.inputs->key ? *call.inputs->key : call.inputs->query;
    auto l = static_cast<std::int64_t>(call.number("stride", 0));
    if (l == 0) {
        l = 1;
        while (l * l < key.shape[2]) ++l;
    }
    auto c = static_cast<std::int64_t>(call.number("summary", 0));
    if (c == 0) c = std::max<std::int64_t>(1, l / 16);
    const auto verts = static_cast<std::int64_t>(call.number("num_verts", 1));
    const std::string factor = call.word("factor");
    const std::int64_t p = at.position, v = (factor == "heads" ? at.h / 2 : at.h) % verts;
    bool near = false, far = false;
    if (call.word("pattern") == "strided") {
        near = std::abs(p - at.j) < l;
        far = (p - at.j) % l == 0;
    } else {
        near = p >= 0 && p / l == at.j / l;
        far = at.j % l >= l - (v + 1) * c && at.j % l < l - v * c;
    }
    if (factor == "first") return near;
    if (factor == "second") return far;
    if (factor == "heads") return at.h % 2 == 0 ? near : far;
    return near || far;
}

const specs::Registration spec(
    {.mechanism = "sparse-transformer-attention",
     .oracle =
         [](const specs::Call& call) {
             return specs::dense(
                 call, [&](const specs::Place& at) { return visible(call, at); }, true, true);
         },
     .variants = {{{"causal", false}},
                  {{"stride", 1}},
                  {{"stride", 5}, {"factor", "first"}},
                  {{"stride", 4}, {"factor", "second"}, {"causal", false}},
                  {{"stride", 3}, {"factor", "heads"}},
                  {{"stride", 6}, {"dropout", 0.3}, {"seed", 3}},
                  {{"pattern", "fixed"}},
                  {{"pattern", "fixed"}, {"causal", false}},
                  {{"pattern", "fixed"}, {"stride", 8}, {"summary", 2}, {"num_verts", 3}},
                  {{"pattern", "fixed"}, {"stride", 9}, {"summary", 2}, {"num_verts", 2}, {"factor", "heads"}},
                  {{"pattern", "fixed"}, {"stride", 70}, {"summary", 5}, {"causal", false}, {"dropout", 0.25}},
                  {{"pattern", "fixed"}, {"stride", 66}, {"summary", 3}, {"num_verts", 2}},
                  {{"pattern", "fixed"}, {"stride", 5}, {"summary", 2}, {"factor", "second"}},
                  {{"pattern", "fixed"}, {"stride", 7}, {"factor", "first"}, {"causal", false}},
                  {{"pattern", "fixed"}, {"stride", 1}}},
     .rows_on_axis = true});
}  // namespace
