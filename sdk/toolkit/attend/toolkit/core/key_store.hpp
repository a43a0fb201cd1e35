// SPDX-License-Identifier: Apache-2.0
// Rows of keys and values that lie in pages or as codes (attend_key_store): where a row is, and its numbers as float32.
#pragma once

#include "attend/toolkit.h"
#include "attend/toolkit/core/tensor_view.hpp"
#include "attend/toolkit/decode/elements.hpp"

namespace attend::ATTEND_ISA {

inline bool is_paged(const attend_tile_problem& problem, uint32_t segment) {
    return segment == 0 && problem.store != nullptr && problem.store->pages != nullptr;
}
// Whether the tile engine has to bring rows together: they lie in pages, are codes, or are rounded.
inline bool is_gathered(const attend_tile_problem& problem, uint32_t segment) {
    const attend_key_store* store = segment == 0 ? problem.store : nullptr;
    return store != nullptr &&
           (store->pages != nullptr || store->key_scale != nullptr || store->rounding != ATTEND_STORE_AS_IT_IS ||
            decode::is_code(decode::element_of(*problem.segments[0].key)));
}
// Keys of a segment.
inline int64_t segment_keys(const attend_tile_problem& problem, uint32_t segment) {
    const int64_t rows = problem.segments[segment].key->shape[2];
    return is_paged(problem, segment) ? problem.store->pages->shape[1] * rows : rows;
}

// The rows of one tensor of a segment for one item and head.
class StoredRows {
public:
    StoredRows(const attend_tensor& tensor, const attend_key_store* store, const attend_tensor* scale, int64_t item,
               int64_t head)
        : tensor_(&tensor), scale_(scale), item_(item), head_(head), element_(decode::element_of(tensor)) {
        if (store == nullptr) return;
        scale_keys_ = store->scale_keys;
        rounding_ = store->rounding;
        if (store->pages == nullptr) return;
        page_keys_ = tensor.shape[2];
        pages_ = static_cast<const int32_t*>(store->pages->data) + item * store->pages->strides[0];
        page_step_ = store->pages->strides[1];
    }

    bool paged() const { return pages_ != nullptr; }
    // Rows from `row` on that lie one stride apart.
    int64_t together(int64_t row) const { return pages_ == nullptr ? INT64_MAX : page_keys_ - row % page_keys_; }
    int64_t stride() const { return tensor_->strides[2] * decode::bytes_of(element_); }
    const char* at(int64_t row) const {
        const int64_t page = pages_ == nullptr ? tensor_->shape[0] == 1 ? 0 : item_ : page_of(row);
        const int64_t slot = pages_ == nullptr ? row : row % page_keys_;
        return static_cast<const char*>(tensor_->data) +
               (page * tensor_->strides[0] + head_ * tensor_->strides[1] + slot * tensor_->strides[2]) *
                   decode::bytes_of(element_);
    }
    // A row of `count` elements as float32.
    void widen(int64_t row, int64_t count, float* to) const {
        const char* from = at(row);
        if (tensor_->strides[3] == 1)
            decode::widen_row(from, element_, count, to);
        else
            for (int64_t t = 0; t < count; ++t) to[t] = decode::element_at(from, t * tensor_->strides[3], element_);
        if (rounding_ != ATTEND_STORE_AS_IT_IS) round_row(to, count);
        if (scale_ == nullptr) return;
        const float by = scale_of(row);
        for (int64_t t = 0; t < count; ++t) to[t] *= by;
    }
    // Rows from `row` on that have one scale.
    int64_t scaled_alike(int64_t row) const {
        const int64_t slot = pages_ == nullptr ? row : row % page_keys_;
        const int64_t alike = scale_keys_ - slot % scale_keys_, near = together(row);
        return alike < near ? alike : near;
    }
    float scale_of(int64_t row) const {
        const int64_t first = pages_ == nullptr ? item_ : page_of(row);
        const int64_t last = (pages_ == nullptr ? row : row % page_keys_) / scale_keys_;
        return static_cast<const float*>(
            scale_->data)[first * scale_->strides[0] + head_ * scale_->strides[1] + last * scale_->strides[2]];
    }

private:
    int64_t page_of(int64_t row) const { return pages_[row / page_keys_ * page_step_]; }
    void round_row(float* row, int64_t count) const {
        if (rounding_ == ATTEND_STORE_ROUND_BF16)
            for (int64_t t = 0; t < count; ++t) row[t] = bf16_to_float(float_to_bf16(row[t]));
        else
            for (int64_t t = 0; t < count; ++t) row[t] = f16_to_float(float_to_f16(row[t]));
    }

    const attend_tensor *tensor_, *scale_;
    int64_t item_, head_;
    decode::Element element_;
    int64_t scale_keys_{1}, page_keys_{1}, page_step_{0};
    uint32_t rounding_{ATTEND_STORE_AS_IT_IS};
    const int32_t* pages_{nullptr};
};

}  // namespace attend::ATTEND_ISA
