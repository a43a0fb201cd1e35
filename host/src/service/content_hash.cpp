// SPDX-License-Identifier: Apache-2.0
#include "service/content_hash.hpp"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>  // the widest instructions that the processor has
#endif

namespace attend {
namespace {

// Both hashes read a block while it is in the first cache.
constexpr std::size_t block = 16 * 1024;
constexpr std::uint64_t check_seed = 0x61747465'6e642f31u;  // any number that is not the first hash's seed, 0

// Calls visit(pointer, bytes) for the runs of a tensor in row-major logical order.
template <class Visit>
void for_each_run(const Tensor& tensor, Visit visit) {
    const std::size_t item = dtype_size(tensor.dtype);
    if (tensor.size() == 0) return;
    const auto* base = static_cast<const unsigned char*>(tensor.data);
    // The trailing axes that lie without gaps are one run.
    std::size_t axes = tensor.shape.size();
    std::int64_t run = 1;
    while (axes > 0 && (tensor.shape[axes - 1] == 1 || tensor.strides[axes - 1] == run)) run *= tensor.shape[--axes];
    const std::size_t run_bytes = static_cast<std::size_t>(run) * item;
    std::vector<std::int64_t> index(axes, 0);
    std::int64_t offset = 0;
    for (;;) {
        visit(base + offset * static_cast<std::int64_t>(item), run_bytes);
        std::size_t axis = axes;
        for (; axis > 0; --axis) {
            offset += tensor.strides[axis - 1];
            if (++index[axis - 1] < tensor.shape[axis - 1]) break;
            offset -= tensor.strides[axis - 1] * tensor.shape[axis - 1];
            index[axis - 1] = 0;
        }
        if (axis == 0) return;
    }
}

// The runs as pieces of up to one block: short ones are gathered first.
template <class Visit>
void for_each_piece(const Tensor& tensor, Visit visit) {
    std::array<unsigned char, 4096> gathered;
    std::size_t filled = 0;
    for_each_run(tensor, [&](const unsigned char* at, std::size_t size) {
        if (size <= 256) {
            if (filled + size > gathered.size()) {
                visit(gathered.data(), filled);
                filled = 0;
            }
            std::memcpy(gathered.data() + filled, at, size);
            filled += size;
            return;
        }
        if (filled > 0) visit(gathered.data(), filled);
        filled = 0;
        for (std::size_t done = 0; done < size; done += block) visit(at + done, std::min(block, size - done));
    });
    if (filled > 0) visit(gathered.data(), filled);
}

}  // namespace

struct ContentHasher::States {
    XXH3_state_t name, check;
};

ContentHasher::ContentHasher() : states_(std::make_unique<States>()) {
    XXH3_INITSTATE(&states_->name);
    XXH3_INITSTATE(&states_->check);
    XXH3_128bits_reset(&states_->name);
    XXH3_64bits_reset_withSeed(&states_->check, check_seed);
}
ContentHasher::~ContentHasher() = default;

void ContentHasher::bytes(const void* data, std::size_t size) {
    if (size == 0) return;
    XXH3_128bits_update(&states_->name, data, size);
    XXH3_64bits_update(&states_->check, data, size);
}

void ContentHasher::elements(const Tensor& tensor) {
    for_each_piece(tensor, [this](const unsigned char* at, std::size_t size) { bytes(at, size); });
}

ContentHash ContentHasher::finish() const {
    const XXH128_hash_t name = XXH3_128bits_digest(&states_->name);
    return {name.low64, name.high64, XXH3_64bits_digest(&states_->check)};
}

ContentHash hash_of(const Tensor& tensor) {
    ContentHasher hasher;
    hasher.number(static_cast<std::int64_t>(tensor.dtype));
    hasher.number(tensor.rank());
    for (const std::int64_t extent : tensor.shape) hasher.number(extent);
    hasher.elements(tensor);
    return hasher.finish();
}

bool same_content(const Tensor& a, const Tensor& b) {
    if (a.dtype != b.dtype || a.shape != b.shape) return false;
    const Result<Tensor> x = contiguous_copy(a), y = contiguous_copy(b);
    return x && y && (x->byte_size() == 0 || std::memcmp(x->data, y->data, x->byte_size()) == 0);
}

}  // namespace attend
