// SPDX-License-Identifier: Apache-2.0
// Tensors laid out in memory by any strides, for tests of the linear engine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "attend/abi.h"

namespace attend::linear_test {

// A logical array with strides in memory that is otherwise 0xFF.
template <class T>
class Laid {
public:
    Laid(std::vector<int64_t> shape, int layout, const std::vector<T>& dense)
        : shape_(std::move(shape)), strides_(shape_.size()) {
        const size_t rank = shape_.size();
        std::vector<size_t> order(rank);
        for (size_t axis = 0; axis < rank; ++axis) order[axis] = axis;
        if (layout == 1 && rank >= 3) std::swap(order[rank - 2], order[rank - 3]);
        int64_t step = layout == 3 ? 3 : 1;
        for (size_t at = rank; at-- > 0;) {
            strides_[order[at]] = step;
            step = step * std::max<int64_t>(shape_[order[at]], 1) + (layout == 3 ? 5 : 0);
        }
        memory_.assign(static_cast<size_t>(step) + 32, T{});
        std::memset(memory_.data(), 0xFF, memory_.size() * sizeof(T));
        base_ = 16;
        if (layout == 2)
            for (size_t axis = rank >= 2 ? rank - 2 : 0; axis < rank; ++axis) {
                base_ += strides_[axis] * std::max<int64_t>(shape_[axis] - 1, 0);
                strides_[axis] = -strides_[axis];
            }
        size_t index = 0;
        each([&](int64_t place) {
            if (index < dense.size()) memory_[static_cast<size_t>(place)] = dense[index];
            ++index;
        });
    }
    attend_tensor* tensor() {
        tensor_.struct_size = sizeof tensor_;
        tensor_.data = memory_.data() + base_;
        tensor_.device_type = ATTEND_DEVICE_CPU;
        tensor_.ndim = static_cast<int32_t>(shape_.size());
        tensor_.dtype_code = std::is_floating_point_v<T> ? ATTEND_CODE_FLOAT
                             : std::is_signed_v<T>       ? ATTEND_CODE_INT
                                                         : ATTEND_CODE_UINT;
        tensor_.dtype_bits = sizeof(T) * 8;
        tensor_.dtype_lanes = 1;
        tensor_.shape = shape_.data();
        tensor_.strides = strides_.data();
        tensor_.align = sizeof(T);
        return &tensor_;
    }
    std::vector<T> values() {
        std::vector<T> dense;
        each([&](int64_t place) { dense.push_back(memory_[static_cast<size_t>(place)]); });
        return dense;
    }
    bool gaps_untouched() {
        std::vector<bool> used(memory_.size(), false);
        each([&](int64_t place) { used[static_cast<size_t>(place)] = true; });
        T poison;
        std::memset(&poison, 0xFF, sizeof poison);
        for (size_t place = 0; place < memory_.size(); ++place)
            if (!used[place] && std::memcmp(&memory_[place], &poison, sizeof poison) != 0) return false;
        return true;
    }

private:
    template <class Visit>
    void each(Visit visit) {
        for (const int64_t extent : shape_)
            if (extent == 0) return;
        std::vector<int64_t> index(shape_.size(), 0);
        while (true) {
            int64_t place = base_;
            for (size_t axis = 0; axis < index.size(); ++axis) place += index[axis] * strides_[axis];
            visit(place);
            size_t axis = index.size();
            while (axis > 0 && ++index[axis - 1] == shape_[axis - 1]) index[--axis] = 0;
            if (axis == 0) return;
        }
    }
    std::vector<int64_t> shape_, strides_;
    std::vector<T> memory_;
    int64_t base_{0};
    attend_tensor tensor_{};
};

}  // namespace attend::linear_test
