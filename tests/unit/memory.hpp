// SPDX-License-Identifier: Apache-2.0
// What tests of engines share: seeded numbers, tensors with awkward strides in poisoned memory, a host whose loop runs on
// plain threads, comparisons.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "attend/abi.h"
#include "support/catch.hpp"

namespace attend::test {

constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

class Random {
public:
    explicit Random(uint64_t seed) : engine_(seed) {}
    int64_t whole(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
    bool chance(double probability) { return std::uniform_real_distribution<double>(0.0, 1.0)(engine_) < probability; }
    float normal() { return std::normal_distribution<float>(0.0f, 1.0f)(engine_); }
    template <class T>
    T pick(std::initializer_list<T> choices) {
        return choices.begin()[whole(0, static_cast<int64_t>(choices.size()) - 1)];
    }
    std::vector<float> normals(int64_t count, float spread) {
        std::vector<float> values(static_cast<size_t>(count));
        for (float& value : values) value = spread * normal();
        return values;
    }

private:
    std::mt19937_64 engine_;
};

enum class Strides { packed, swapped, reversed, spread };  // [B,N,H,D] order; last two axes backwards; inner stride 3

// A dense logical array [shape...] laid out with strides; everything between the elements is NaN (or 0xFF), and so are
// elements that `dense` does not have.
template <class T>
class Strided {
public:
    Strided() = default;
    Strided(std::vector<int64_t> shape, Strides kind, const std::vector<T>& dense, std::vector<bool> broadcast = {})
        : shape_(std::move(shape)), strides_(shape_.size()) {
        const size_t rank = shape_.size();
        std::vector<size_t> order(rank);
        for (size_t dim = 0; dim < rank; ++dim) order[dim] = dim;
        if (kind == Strides::swapped && rank >= 3) std::swap(order[rank - 2], order[rank - 3]);
        broadcast.resize(rank, false);
        int64_t step = kind == Strides::spread ? 3 : 1;
        for (size_t at = rank; at-- > 0;) {
            strides_[order[at]] = broadcast[order[at]] ? 0 : step;
            if (!broadcast[order[at]]) step *= std::max<int64_t>(shape_[order[at]], 1);
            if (kind == Strides::spread) step += 5;
        }
        int64_t lowest = 0;
        if (kind == Strides::reversed)
            for (size_t dim = rank >= 2 ? rank - 2 : 0; dim < rank; ++dim) {
                strides_[dim] = -strides_[dim];
                lowest += strides_[dim] * std::max<int64_t>(shape_[dim] - 1, 0);
            }
        memory_.resize(static_cast<size_t>(step) + 64);
        std::memset(memory_.data(), 0xFF, memory_.size() * sizeof(T));
        base_ = 16 - lowest;
        size_t index = 0;
        each([&](int64_t offset) {
            if (index < dense.size()) memory_[static_cast<size_t>(offset)] = dense[index];
            ++index;
        });
    }

    attend_tensor tensor() {
        attend_tensor tensor{};
        tensor.struct_size = sizeof tensor;
        tensor.data = memory_.data() + base_;
        tensor.device_type = ATTEND_DEVICE_CPU;
        tensor.ndim = static_cast<int32_t>(shape_.size());
        tensor.dtype_code = std::is_floating_point_v<T> ? ATTEND_CODE_FLOAT
                            : std::is_signed_v<T>       ? ATTEND_CODE_INT
                                                        : ATTEND_CODE_UINT;
        tensor.dtype_bits = sizeof(T) * 8;
        tensor.dtype_lanes = 1;
        tensor.shape = shape_.data();
        tensor.strides = strides_.data();
        tensor.align = sizeof(T);
        return tensor;
    }
    // The dense logical array.
    std::vector<T> values() {
        std::vector<T> dense;
        dense.reserve(memory_.size());
        each([&](int64_t offset) { dense.push_back(memory_[static_cast<size_t>(offset)]); });
        return dense;
    }
    // Bytes outside the elements are as they were made.
    bool gaps_untouched() {
        std::vector<char> used(memory_.size(), 0);
        each([&](int64_t offset) { used[static_cast<size_t>(offset)] = 1; });
        T poison;
        std::memset(&poison, 0xFF, sizeof poison);
        for (size_t at = 0; at < memory_.size(); ++at)
            if (used[at] == 0 && std::memcmp(&memory_[at], &poison, sizeof(T)) != 0) return false;
        return true;
    }

private:
    template <class Visit>
    void each(Visit visit) {
        for (const int64_t extent : shape_)
            if (extent == 0) return;
        // The last axis in a loop of its own: most of the time of these tests is spent here.
        const int64_t inner = shape_.empty() ? 1 : shape_.back(), step = shape_.empty() ? 0 : strides_.back();
        std::vector<int64_t> index(shape_.empty() ? 0 : shape_.size() - 1, 0);
        while (true) {
            int64_t offset = base_;
            for (size_t dim = 0; dim < index.size(); ++dim) offset += index[dim] * strides_[dim];
            for (int64_t at = 0; at < inner; ++at) visit(offset + at * step);
            size_t dim = index.size();
            while (dim-- > 0) {
                if (++index[dim] < shape_[dim]) break;
                index[dim] = 0;
            }
            if (dim == static_cast<size_t>(-1)) return;
        }
    }

    std::vector<int64_t> shape_, strides_;
    std::vector<T> memory_;
    int64_t base_{0};
};

// A host that offers nothing but a loop over chunks on threads of its own.
class LoopHost {
public:
    explicit LoopHost(uint32_t workers) : workers_(workers) {
        host_.struct_size = sizeof host_;
        host_.abi_major = ATTEND_ABI_MAJOR;
        host_.impl = this;
        host_.parallel_for = parallel_for;
    }
    const attend_host* get() const { return &host_; }
    uint32_t workers() const { return workers_; }

private:
    static attend_status parallel_for(const attend_host* host, attend_call*, uint64_t n, uint64_t grain, uint32_t,
                                      attend_range_fn body, void* user) noexcept {
        const auto* self = static_cast<const LoopHost*>(host->impl);
        std::atomic<uint64_t> next{0};
        std::atomic<attend_status> status{ATTEND_OK};
        const auto work = [&](uint32_t slot) {
            for (uint64_t begin = next.fetch_add(grain); begin < n; begin = next.fetch_add(grain)) {
                const attend_status one = body(user, begin, std::min(n, begin + grain), slot);
                if (one != ATTEND_OK) status = one;
            }
        };
        std::vector<std::thread> threads;
        for (uint32_t slot = 1; slot < self->workers_; ++slot) threads.emplace_back(work, slot);
        work(0);
        for (std::thread& thread : threads) thread.join();
        return status;
    }

    attend_host host_{};
    uint32_t workers_;
};

// Memory of exactly the size asked for, 64-byte aligned, full of NaN, with a guard behind it.
class Scratch {
public:
    explicit Scratch(uint64_t bytes) : bytes_(bytes), memory_(static_cast<size_t>(bytes) + 128, 0xFF) {
        const auto address = reinterpret_cast<uintptr_t>(memory_.data());
        offset_ = (64 - address % 64) % 64;
    }
    void* data() { return memory_.data() + offset_; }
    uint64_t bytes() const { return bytes_; }
    bool guard_untouched() const {
        for (size_t at = offset_ + static_cast<size_t>(bytes_); at < memory_.size(); ++at)
            if (memory_[at] != 0xFF) return false;
        return true;
    }

private:
    uint64_t bytes_;
    std::vector<unsigned char> memory_;
    size_t offset_{0};
};

struct ErrorText {
    char text[512]{};
    attend_error error{};
    ErrorText() {
        error.struct_size = sizeof error;
        error.text = text;
        error.text_capacity = sizeof text;
    }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

// Index of the first element further than `limit` from the expected one, or not NaN where that is; -1 when all agree.
inline int64_t first_difference(const std::vector<float>& got, const std::vector<double>& expected, double limit,
                                bool relative = false) {
    if (got.size() != expected.size()) return 0;
    for (size_t at = 0; at < got.size(); ++at) {
        const double g = static_cast<double>(got[at]), e = expected[at];
        if (std::isnan(g) && std::isnan(e)) continue;
        if (std::isinf(e) && g == e) continue;
        const double allowed = relative ? limit * std::max(1.0, std::fabs(e)) : limit;
        if (!(std::fabs(g - e) <= allowed)) return static_cast<int64_t>(at);
    }
    return -1;
}

// The same where each element may be off by `share` of a size of its own too.
inline int64_t first_difference(const std::vector<float>& got, const std::vector<double>& expected, double limit,
                                const std::vector<double>& sizes, double share) {
    if (got.size() != expected.size() || sizes.size() != expected.size()) return 0;
    for (size_t at = 0; at < got.size(); ++at) {
        const double g = static_cast<double>(got[at]), e = expected[at];
        if ((std::isnan(g) && std::isnan(e)) || g == e) continue;
        if (std::isinf(e) || !(std::fabs(g - e) <= limit + (share == 0.0 ? 0.0 : share * sizes[at])))
            return static_cast<int64_t>(at);
    }
    return -1;
}

}  // namespace attend::test
