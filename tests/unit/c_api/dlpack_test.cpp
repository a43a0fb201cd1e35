// SPDX-License-Identifier: Apache-2.0
// Tensors in and out as DLPack: no copy, deleters exactly once, and one sentence for each thing that is wrong.
#include <functional>
#include <limits>

#include "support.hpp"

using namespace c_api_test;

namespace {

// A producer's tensor [1, 2, 4, 8] that counts how often it was deleted.
struct Produced {
    std::vector<float> elements = std::vector<float>(64 + 16);
    std::vector<std::int64_t> shape{1, 2, 4, 8}, strides{64, 32, 8, 1};
    DLManagedTensorVersioned versioned{};
    DLManagedTensor unversioned{};
    int deleted{0};

    Produced() {
        support::Random random(3);
        for (float& element : elements) element = random.normal();
        DLTensor tensor{};
        tensor.data = elements.data();
        tensor.device = {kDLCPU, 0};
        tensor.ndim = 4;
        tensor.dtype = {kDLFloat, 32, 1};
        tensor.shape = shape.data();
        tensor.strides = strides.data();
        versioned.version = {1, 3};
        versioned.manager_ctx = unversioned.manager_ctx = this;
        versioned.deleter = [](DLManagedTensorVersioned* self) {
            ++static_cast<Produced*>(self->manager_ctx)->deleted;
        };
        unversioned.deleter = [](DLManagedTensor* self) { ++static_cast<Produced*>(self->manager_ctx)->deleted; };
        versioned.dl_tensor = unversioned.dl_tensor = tensor;
    }
    Produced(const Produced&) = delete;
    Produced& operator=(const Produced&) = delete;

    [[nodiscard]] attend::Tensor expected() const {
        const DLTensor& tensor = versioned.dl_tensor;
        attend::ForwardInputs inputs;
        inputs.query =
            attend::Tensor::wrap(attend::DType::f32, shape, static_cast<std::byte*>(tensor.data) + tensor.byte_offset);
        attend::ForwardOptions options;
        options.mechanism = "flash-attention-v2";
        return support::service().forward(inputs, options).value().output;
    }
};

attend_named_tensor named(const char* name) {
    auto tensor = sized<attend_named_tensor>();
    tensor.name = name;
    return tensor;
}

}  // namespace

TEST_CASE("c api dlpack: the three forms of an input, borrowed") {
    Produced produced;
    for (int form = 0; form < 3; ++form) {
        attend_named_tensor query = named("query");
        if (form == 0) query.dlpack = &produced.versioned;
        if (form == 1) query.dlpack_unversioned = &produced.unversioned;
        if (form == 2) query.dltensor = &produced.versioned.dl_tensor;
        Call call("flash-attention-v2");
        call.tensors.push_back(query);
        CHECK(same_bits(view_of(call.run(), "output"), produced.expected()));
    }
    CHECK(produced.deleted == 0);
}

TEST_CASE("c api dlpack: NULL strides, a byte offset, booleans") {
    Produced produced;
    produced.versioned.dl_tensor.strides = nullptr;
    produced.versioned.dl_tensor.byte_offset = 16 * sizeof(float);
    attend_named_tensor query = named("query"), mask = named("mask");
    query.dlpack = &produced.versioned;
    Call call("flash-attention-v2");
    call.tensors = {query};
    CHECK(same_bits(view_of(call.run(), "output"), produced.expected()));

    std::vector<std::uint8_t> bits(16, 1);
    std::int64_t square[] = {4, 4};
    DLTensor selected{bits.data(), {kDLCPU, 0}, 2, {kDLBool, 8, 1}, square, nullptr, 0};
    mask.dltensor = &selected;
    call.tensors = {query, mask};
    CHECK(same_bits(view_of(call.run(), "output"), produced.expected()));
    bits[1] = 0;
    CHECK_FALSE(same_bits(view_of(call.run(), "output"), produced.expected()));
}

TEST_CASE("c api dlpack: tensors given over are deleted exactly once, whatever comes of the call") {
    Produced first, second;
    attend_named_tensor query = named("query"), key = named("key"), value = named("value");
    query.dlpack = key.dlpack = &first.versioned;
    value.dlpack_unversioned = &second.unversioned;
    query.flags = key.flags = value.flags = ATTEND_TENSOR_GIVEN;
    Call call("flash-attention-v2");
    call.tensors = {query, key, value};
    const ResultHandle result = call.run();
    CHECK(first.deleted == 1);
    CHECK(second.deleted == 1);

    // A call that fails late, early, and in the middle of the list.
    call.request.options_json = R"({"window": -5})";
    call.refused(ATTEND_E_OPTION);
    CHECK(first.deleted == 2);
    call.request.options_json = nullptr;
    call.request.mechanism = "no-such-attention";
    call.refused(ATTEND_E_NOT_FOUND);
    CHECK(first.deleted == 3);
    call.request.mechanism = "flash-attention-v2";
    call.tensors[0].name = nullptr;
    call.refused(ATTEND_E_INPUT);
    CHECK(first.deleted == 4);
    CHECK(second.deleted == 4);
    call.tensors[0].name = "query";
    call.tensors[1].struct_size = 12;
    call.refused(ATTEND_E_INPUT);
    CHECK(first.deleted == 5);
    CHECK(second.deleted == 5);
    ResultHandle none;
    call.tensors[1].struct_size = sizeof key;
    CHECK(call.run(nullptr, none, nullptr) == ATTEND_E_INPUT);
    CHECK(first.deleted == 6);
    CHECK(second.deleted == 6);
    // Without a deleter there is nothing to call.
    first.versioned.deleter = nullptr;
    call.run();
    CHECK(second.deleted == 7);
}

TEST_CASE("c api dlpack: outputs share the result's memory and outlive it") {
    support::Random random(4);
    const attend::ForwardInputs inputs = support::make_inputs(random, {1, 2, 2, 10, 10, 8, 8});
    attend::ForwardOptions options;
    options.mechanism = "flash-attention-v2";
    options.lse = true;
    const auto expected = support::service().forward(inputs, options).value();
    Call call("flash-attention-v2");
    call.request.flags = ATTEND_FORWARD_LSE;
    call.add(inputs);
    ResultHandle result = call.run();
    DLManagedTensorVersioned *output = nullptr, *again = nullptr, *lse = nullptr;
    REQUIRE(attend_result_dlpack(result.get(), "output", &output, nullptr) == ATTEND_E_NONE);
    REQUIRE(attend_result_dlpack(result.get(), "output", &again, nullptr) == ATTEND_E_NONE);
    REQUIRE(attend_result_dlpack(result.get(), "lse", &lse, nullptr) == ATTEND_E_NONE);
    CHECK(output->dl_tensor.data == view_of(result, "output").data);
    CHECK(output->dl_tensor.data == again->dl_tensor.data);
    CHECK(output != again);
    result.reset();
    again->deleter(again);
    CHECK(output->version.major == 1);
    CHECK(output->flags == 0);
    const DLTensor& tensor = output->dl_tensor;
    CHECK(tensor.device.device_type == kDLCPU);
    CHECK((tensor.dtype.code == kDLFloat && tensor.dtype.bits == 32 && tensor.dtype.lanes == 1));
    CHECK(tensor.byte_offset == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(tensor.data) % 64 == 0);
    REQUIRE(tensor.ndim == 4);
    CHECK(std::vector<std::int64_t>(tensor.shape, tensor.shape + 4) == expected.output.shape);
    CHECK(std::vector<std::int64_t>(tensor.strides, tensor.strides + 4) == expected.output.strides);
    CHECK(std::memcmp(tensor.data, expected.output.data, expected.output.byte_size()) == 0);
    CHECK(std::memcmp(lse->dl_tensor.data, expected.lse->data, expected.lse->byte_size()) == 0);
    // Straight into the next call, which takes it over.
    Call next("flash-attention-v2");
    attend_named_tensor query = named("query");
    query.dlpack = output;
    query.flags = ATTEND_TENSOR_GIVEN;
    next.tensors = {query};
    attend::ForwardInputs chained;
    chained.query = expected.output;
    CHECK(same_bits(view_of(next.run(), "output"), support::service().forward(chained, {}).value().output));
    lse->deleter(lse);
}

TEST_CASE("c api dlpack: what cannot be read is refused") {
    struct Fault {
        const char* what;
        attend_code code;
        std::string says;
        std::function<void(Produced&)> plant;
    };
    constexpr std::int64_t most = std::numeric_limits<std::int64_t>::max();
    const Fault faults[] = {
        {"major version", ATTEND_E_UNSUPPORTED, "DLPack version 2.0; accepted: version 1",
         [](Produced& p) {
             p.versioned.version = {2, 0};
         }},
        {"device", ATTEND_E_UNSUPPORTED, "device of type 2; accepted: 1, the CPU",
         [](Produced& p) { p.versioned.dl_tensor.device.device_type = kDLCUDA; }},
        {"lanes", ATTEND_E_DTYPE, "4 lanes; accepted", [](Produced& p) { p.versioned.dl_tensor.dtype.lanes = 4; }},
        {"complex", ATTEND_E_DTYPE, "code 5, 64 bits",
         [](Produced& p) {
             p.versioned.dl_tensor.dtype = {kDLComplex, 64, 1};
         }},
        {"four bits", ATTEND_E_DTYPE, "code 0, 4 bits",
         [](Produced& p) {
             p.versioned.dl_tensor.dtype = {kDLInt, 4, 1};
         }},
        {"nine axes", ATTEND_E_SHAPE, "ndim is 9; accepted: 0 to 8",
         [](Produced& p) { p.versioned.dl_tensor.ndim = 9; }},
        {"negative ndim", ATTEND_E_SHAPE, "ndim is -1", [](Produced& p) { p.versioned.dl_tensor.ndim = -1; }},
        {"no shape", ATTEND_E_INPUT, "shape is NULL", [](Produced& p) { p.versioned.dl_tensor.shape = nullptr; }},
        {"negative extent", ATTEND_E_SHAPE, "extent 2 is -4; accepted: 0 or more",
         [](Produced& p) { p.shape[2] = -4; }},
        {"elements beyond 63 bits", ATTEND_E_SHAPE, "is larger than memory can be",
         [](Produced& p) {
             p.shape = {most, 2, 4, 8};
         }},
        {"bytes beyond 63 bits", ATTEND_E_SHAPE, "is larger than memory can be",
         [](Produced& p) {
             p.shape = {std::int64_t{1} << 61, 1, 1, 1};
         }},
        {"strides beyond 63 bits", ATTEND_E_SHAPE, "lead out of memory",
         [](Produced& p) {
             p.strides = {64, most, 8, 1};
         }},
        {"strides that add up beyond 63 bits", ATTEND_E_SHAPE, "lead out of memory",
         [](Produced& p) {
             p.strides = {64, most / 4, most / 16, 1};
         }},
        {"strides below address 0", ATTEND_E_SHAPE, "lead out of memory",
         [](Produced& p) {
             p.strides = {64, -(std::int64_t{1} << 60), 8, 1};
         }},
        {"byte offset around the end", ATTEND_E_SHAPE, "lead out of memory",
         [](Produced& p) { p.versioned.dl_tensor.byte_offset = ~std::uint64_t{0} - 3; }},
        {"no data", ATTEND_E_INPUT, "data is NULL", [](Produced& p) { p.versioned.dl_tensor.data = nullptr; }},
        {"between elements", ATTEND_E_INPUT, "not aligned", [](Produced& p) { p.versioned.dl_tensor.byte_offset = 2; }},
    };
    for (const Fault& fault : faults) {
        INFO(fault.what);
        Produced produced;
        fault.plant(produced);
        attend_named_tensor query = named("query");
        query.dlpack = &produced.versioned;
        query.flags = ATTEND_TENSOR_GIVEN;
        Call call("flash-attention-v2");
        call.tensors = {query};
        const Problem problem = call.refused(fault.code);
        CHECK(problem.says("tensor \"query\": "));
        CHECK(problem.says(fault.says));
        CHECK(produced.deleted == 1);
    }
}

TEST_CASE("c api dlpack: empty tensors and scalars are described, not read") {
    Produced produced;
    produced.shape = {1, 2, 0, 8};
    produced.versioned.dl_tensor.data = nullptr;
    attend_named_tensor query = named("query");
    query.dlpack = &produced.versioned;
    Call call("flash-attention-v2");
    call.tensors = {query};
    ResultHandle result;
    Problem problem;
    const attend_code code = call.run(service(), result, problem);
    INFO(problem.message());
    if (code == ATTEND_E_NONE) {
        const attend_view view = view_of(result, "output");
        CHECK(view.shape[2] == 0);
        DLManagedTensorVersioned* output = nullptr;
        REQUIRE(attend_result_dlpack(result.get(), "output", &output, nullptr) == ATTEND_E_NONE);
        output->deleter(output);
    } else {
        CHECK(code == ATTEND_E_SHAPE);
    }
    produced.versioned.dl_tensor.data = produced.elements.data();
    produced.versioned.dl_tensor.ndim = 0;
    produced.versioned.dl_tensor.shape = nullptr;
    call.refused(ATTEND_E_SHAPE);
}
