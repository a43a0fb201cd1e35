// SPDX-License-Identifier: Apache-2.0
// Calls of the C API as a C program makes them, and the C++ service's tensors to compare with.
#pragma once

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attend/attend.h"
#include "attend/dlpack.h"
#include "specs/inputs.hpp"

namespace c_api_test {

struct Close {
    void operator()(attend_service* service) const { attend_service_close(service); }
    void operator()(attend_result* result) const { attend_result_free(result); }
    void operator()(char* text) const { attend_text_free(text); }
};
using Service = std::unique_ptr<attend_service, Close>;
using ResultHandle = std::unique_ptr<attend_result, Close>;
using Text = std::unique_ptr<char, Close>;

template <class T>
T sized() {
    T value{};
    value.struct_size = sizeof value;
    return value;
}

struct Problem {
    attend_error_text text = sized<attend_error_text>();
    operator attend_error_text*() { return &text; }
    [[nodiscard]] std::string message() const { return text.message; }
    [[nodiscard]] bool says(const std::string& part) const { return message().find(part) != std::string::npos; }
};

// With the mechanisms of sdk/examples/geometric beside the built-in ones, which are found from where the library lies.
inline attend_service* service() {
    static const Service opened = [] {
        const char* dirs[] = {ATTEND_BINARY_DIR "/tests/extra_plugins"};
        auto settings = sized<attend_open_settings>();
        settings.threads = 2;
        settings.plugin_dirs = dirs;
        settings.num_plugin_dirs = 1;
        attend_service* handle = nullptr;
        Problem problem;
        if (attend_service_open(&settings, &handle, problem) != ATTEND_E_NONE) FAIL(problem.message());
        return Service(handle);
    }();
    return opened.get();
}

inline std::uint32_t number_of(attend::DType dtype) {
    switch (dtype) {
        case attend::DType::f32: return ATTEND_DTYPE_F32;
        case attend::DType::bf16: return ATTEND_DTYPE_BF16;
        case attend::DType::f16: return ATTEND_DTYPE_F16;
        case attend::DType::f64: return ATTEND_DTYPE_F64;
        case attend::DType::boolean: return ATTEND_DTYPE_BOOL;
        case attend::DType::u8: return ATTEND_DTYPE_U8;
        case attend::DType::i32: return ATTEND_DTYPE_I32;
        case attend::DType::i64: return ATTEND_DTYPE_I64;
        default: FAIL("no number for " << attend::dtype_name(dtype));
    }
    return 0;
}

// The request of a call, with what it points to.
class Call {
public:
    explicit Call(const std::string& mechanism, const std::string& options = "")
        : mechanism_(mechanism), options_(options) {
        request.mechanism = mechanism_.c_str();
        if (!options_.empty()) request.options_json = options_.c_str();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    attend_named_tensor& add(const std::string& name, const attend::Tensor& tensor) {
        names_.push_back(name);
        kept_.push_back(tensor);
        auto& view = views_.emplace_back(sized<attend_view>());
        view.dtype = number_of(tensor.dtype);
        view.data = tensor.data;
        view.shape = kept_.back().shape.data();
        view.strides = kept_.back().strides.data();
        view.ndim = static_cast<std::int32_t>(tensor.rank());
        auto& named = tensors.emplace_back(sized<attend_named_tensor>());
        named.name = names_.back().c_str();
        named.view = &view;
        return named;
    }
    void add(const attend::ForwardInputs& inputs) {
        if (inputs.query.data != nullptr) add("query", inputs.query);
        for (const auto& [name, tensor] :
             {std::pair("key", &inputs.key), std::pair("value", &inputs.value), std::pair("mask", &inputs.mask),
              std::pair("bias", &inputs.bias), std::pair("query_lengths", &inputs.query_lengths),
              std::pair("key_lengths", &inputs.key_lengths)})
            if (*tensor) add(name, **tensor);
        for (const auto& [name, tensor] : inputs.extra) add("input." + name, tensor);
        for (const auto& [name, tensor] : inputs.weights) add("weight." + name, tensor);
    }
    attend_code run(attend_service* on, ResultHandle& result, attend_error_text* error) {
        request.tensors = tensors.data();
        request.num_tensors = tensors.size();
        attend_result* handle = nullptr;
        const attend_code code = attend_forward(on, &request, &handle, error);
        result.reset(handle);
        return code;
    }
    // A call that must succeed.
    ResultHandle run() {
        ResultHandle result;
        Problem problem;
        const attend_code code = run(service(), result, problem);
        INFO(mechanism_ << ": " << problem.message());
        REQUIRE(code == ATTEND_E_NONE);
        REQUIRE(result != nullptr);
        return result;
    }
    // A call that must fail with one sentence.
    Problem refused(attend_code expected) {
        ResultHandle result;
        Problem problem;
        const attend_code code = run(service(), result, problem);
        INFO(problem.message());
        CHECK(code == expected);
        CHECK(problem.text.code == expected);
        CHECK(std::string(problem.text.name) == attend_code_name(expected));
        CHECK(result == nullptr);
        CHECK(problem.message().find(": ") != std::string::npos);
        CHECK(problem.message().find('\n') == std::string::npos);
        return problem;
    }

    attend_forward_request request = sized<attend_forward_request>();
    std::vector<attend_named_tensor> tensors;

private:
    std::string mechanism_, options_;
    std::deque<std::string> names_;
    std::deque<attend::Tensor> kept_;
    std::deque<attend_view> views_;
};

inline attend_view view_of(const ResultHandle& result, const std::string& name) {
    auto view = sized<attend_view>();
    Problem problem;
    const attend_code code = attend_result_view(result.get(), name.c_str(), &view, problem);
    INFO(problem.message());
    REQUIRE(code == ATTEND_E_NONE);
    return view;
}

// The elements of the view are those of the tensor, bit for bit.
inline bool same_bits(const attend_view& view, const attend::Tensor& tensor) {
    if (view.ndim != tensor.rank() || view.dtype != number_of(tensor.dtype) ||
        !std::equal(tensor.shape.begin(), tensor.shape.end(), view.shape))
        return false;
    attend::Tensor seen;
    seen.dtype = tensor.dtype;
    seen.shape.assign(view.shape, view.shape + view.ndim);
    seen.strides.assign(view.strides, view.strides + view.ndim);
    seen.data = view.data;
    const attend::Tensor a = attend::contiguous_copy(seen).value(), b = attend::contiguous_copy(tensor).value();
    return a.byte_size() == 0 || std::memcmp(a.data, b.data, a.byte_size()) == 0;
}

inline std::string names_of(const ResultHandle& result) {
    std::string names;
    for (std::uint64_t at = 0; at < attend_result_count(result.get()); ++at)
        names += std::string(attend_result_name(result.get(), at)) + " ";
    return names;
}

}  // namespace c_api_test
