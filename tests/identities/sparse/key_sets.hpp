// SPDX-License-Identifier: Apache-2.0
// Which keys a query sees, read off the weights of a call whose queries are zero: all keys that it sees weigh the same.
#pragma once

#include <set>

#include "identities/identities.hpp"

namespace identities {

using Keys = std::vector<std::int64_t>;

struct KeySets {
    Tensor weights;
    // Calls with these extents; `inputs` may bring lengths, masks and what the mechanism needs itself.
    KeySets(const std::string& mechanism, const NamedValues& options, std::int64_t heads, std::int64_t q_len,
            std::int64_t kv_len, ForwardInputs inputs = {}) {
        Random random(5);
        inputs.query = filled({1, heads, q_len, 4}, 0.0f);
        inputs.key = normal(random, {1, heads, kv_len, 4});
        inputs.value = normal(random, {1, heads, kv_len, 4});
        weights = *run(service(), inputs, mechanism, options, false, true).scores;
    }
    Keys row(std::int64_t head, std::int64_t i) const {
        Keys keys;
        for (std::int64_t j = 0; j < weights.shape[3]; ++j)
            if (at(weights, 0, head, i, j) > 0.0f) keys.push_back(j);
        return keys;
    }
    std::int64_t pairs(std::int64_t head = 0) const {
        std::int64_t sum = 0;
        for (std::int64_t i = 0; i < weights.shape[2]; ++i) sum += static_cast<std::int64_t>(row(head, i).size());
        return sum;
    }

private:
    static float at(const Tensor& t, std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) {
        return t.as<const float>()[b * t.strides[0] + h * t.strides[1] + i * t.strides[2] + j * t.strides[3]];
    }
};

// Every `step`-th entry of an axis from `first` on.
inline Tensor every(const Tensor& from, std::size_t axis, std::int64_t first, std::int64_t step) {
    std::vector<std::int64_t> which;
    for (std::int64_t at = first; at < from.shape[axis]; at += step) which.push_back(at);
    return take(from, axis, which);
}

}  // namespace identities
