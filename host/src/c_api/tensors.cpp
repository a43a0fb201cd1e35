// SPDX-License-Identifier: Apache-2.0
#include "c_api/tensors.hpp"

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "c_api/boundary.hpp"

namespace attend::c_api {
namespace {

constexpr std::int32_t most_axes = 8;
constexpr std::uint64_t most_tensors = 1u << 16;

// The numbers of attend.h and DLPack for each data type.
struct TypeRow {
    DType dtype;
    std::uint32_t number;
    std::uint8_t code, bits;
};
constexpr std::array type_table{TypeRow{DType::f32, ATTEND_DTYPE_F32, kDLFloat, 32},
                                TypeRow{DType::f64, ATTEND_DTYPE_F64, kDLFloat, 64},
                                TypeRow{DType::f16, ATTEND_DTYPE_F16, kDLFloat, 16},
                                TypeRow{DType::bf16, ATTEND_DTYPE_BF16, kDLBfloat, 16},
                                TypeRow{DType::i8, ATTEND_DTYPE_I8, kDLInt, 8},
                                TypeRow{DType::u8, ATTEND_DTYPE_U8, kDLUInt, 8},
                                TypeRow{DType::boolean, ATTEND_DTYPE_BOOL, kDLBool, 8},
                                TypeRow{DType::i32, ATTEND_DTYPE_I32, kDLInt, 32},
                                TypeRow{DType::i64, ATTEND_DTYPE_I64, kDLInt, 64},
                                TypeRow{DType::i16, ATTEND_DTYPE_I16, kDLInt, 16},
                                TypeRow{DType::u16, ATTEND_DTYPE_U16, kDLUInt, 16},
                                TypeRow{DType::u32, ATTEND_DTYPE_U32, kDLUInt, 32},
                                TypeRow{DType::u64, ATTEND_DTYPE_U64, kDLUInt, 64},
                                TypeRow{DType::f8_e4m3, ATTEND_DTYPE_F8_E4M3, kDLFloat8_e4m3fn, 8},
                                TypeRow{DType::f8_e5m2, ATTEND_DTYPE_F8_E5M2, kDLFloat8_e5m2, 8}};
static_assert(type_table.size() == all_dtypes.size());

const TypeRow& row_of(DType dtype) {
    return *std::find_if(type_table.begin(), type_table.end(), [&](const TypeRow& row) { return row.dtype == dtype; });
}

Error bad_shape(const std::string& place, const std::string& what) {
    return {ErrorCode::shape, place + ": " + what, ""};
}

// Bytes below and above the first element that the strides reach; nothing where that is more than 63 bits hold.
struct Reach {
    std::int64_t below{0}, above{0};
};
std::optional<Reach> reach_of(const Tensor& tensor) {
    Reach reach;
    const auto item = static_cast<std::int64_t>(dtype_size(tensor.dtype));
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis) {
        std::int64_t bytes = 0;
        if (__builtin_mul_overflow(tensor.shape[axis] - 1, tensor.strides[axis], &bytes) ||
            __builtin_mul_overflow(bytes, item, &bytes))
            return std::nullopt;
        if (bytes < 0 ? __builtin_sub_overflow(reach.below, bytes, &reach.below)
                      : __builtin_add_overflow(reach.above, bytes, &reach.above))
            return std::nullopt;
    }
    if (__builtin_add_overflow(reach.above, item, &reach.above)) return std::nullopt;
    return reach;
}

Result<Tensor> checked(const std::string& place, DType dtype, void* data, std::uint64_t byte_offset, std::int32_t ndim,
                       const std::int64_t* shape, const std::int64_t* strides) {
    if (ndim < 0 || ndim > most_axes)
        return bad_shape(place, "ndim is " + std::to_string(ndim) + "; accepted: 0 to " + std::to_string(most_axes));
    if (ndim > 0 && shape == nullptr)
        return wrong_argument(place + ": shape is NULL; accepted: " + std::to_string(ndim) + " extents");
    Tensor tensor;
    tensor.dtype = dtype;
    tensor.shape.assign(shape, shape + (ndim > 0 ? ndim : 0));
    for (std::size_t axis = 0; axis < tensor.shape.size(); ++axis)
        if (tensor.shape[axis] < 0)
            return bad_shape(place, "extent " + std::to_string(axis) + " is " + std::to_string(tensor.shape[axis]) +
                                        "; accepted: 0 or more");
    if (!checked_byte_size(tensor.shape, dtype_size(dtype)))
        return bad_shape(place, "shape " + shape_text(tensor.shape) +
                                    " is larger than memory can be; accepted: " + "less than 2^63 bytes");
    if (strides != nullptr)
        tensor.strides.assign(strides, strides + ndim);
    else
        tensor.strides = compact_strides(tensor.shape);
    tensor.data = data;
    if (tensor.size() == 0) return tensor;

    if (data == nullptr)
        return wrong_argument(place + ": data is NULL; accepted: the elements of a tensor of shape " +
                              shape_text(tensor.shape));
    const std::optional<Reach> reach = reach_of(tensor);
    std::uintptr_t first = 0, unused = 0;
    if (!reach || __builtin_add_overflow(reinterpret_cast<std::uintptr_t>(data), byte_offset, &first) ||
        __builtin_add_overflow(first, static_cast<std::uintptr_t>(reach->above), &unused) ||
        __builtin_sub_overflow(first, static_cast<std::uintptr_t>(reach->below), &unused))
        return bad_shape(place, "strides or byte_offset lead out of memory; accepted: elements that exist");
    if (first % dtype_size(dtype) != 0)
        return wrong_argument(place +
                              ": data is not aligned to its elements; accepted: an address that is a multiple of " +
                              std::to_string(dtype_size(dtype)));
    tensor.data = static_cast<std::byte*>(data) + byte_offset;
    return tensor;
}

// One element of the array, whatever form it has.
Result<Tensor> one_form(const attend_named_tensor& named, const std::string& place) {
    if (named.dlpack != nullptr) {
        const DLManagedTensorVersioned& managed = *named.dlpack;
        if (managed.version.major != DLPACK_MAJOR_VERSION)
            return Error{ErrorCode::unsupported,
                         place + ": DLPack version " + std::to_string(managed.version.major) + "." +
                             std::to_string(managed.version.minor) + "; accepted: version 1",
                         ""};
        Result<Tensor> tensor = tensor_of(&managed.dl_tensor, place);
        if (tensor) tensor->read_only = (managed.flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0;
        return tensor;
    }
    if (named.dlpack_unversioned != nullptr) return tensor_of(&named.dlpack_unversioned->dl_tensor, place);
    return named.dltensor != nullptr ? tensor_of(named.dltensor, place) : tensor_of(named.view, place);
}

Result<Tensor> read_tensor(const attend_named_tensor& named, const std::string& place) {
    if ((named.flags & ~ATTEND_TENSOR_GIVEN) != 0)
        return Error{ErrorCode::unsupported,
                     place + ": flags are " + std::to_string(named.flags) + "; accepted: 0 or ATTEND_TENSOR_GIVEN", ""};
    const int forms = (named.view != nullptr) + (named.dlpack != nullptr) + (named.dlpack_unversioned != nullptr) +
                      (named.dltensor != nullptr);
    if (forms != 1)
        return wrong_argument(place + ": is given in " + std::to_string(forms) +
                              " forms; accepted: one of view, dlpack, dlpack_unversioned, dltensor");
    if ((named.flags & ATTEND_TENSOR_GIVEN) != 0 && named.dlpack == nullptr && named.dlpack_unversioned == nullptr)
        return wrong_argument(place +
                              ": ATTEND_TENSOR_GIVEN stands at a tensor without deleter; accepted: with dlpack "
                              "or dlpack_unversioned");
    return one_form(named, place);
}

// A DLPack tensor with what it points to.
struct Exported {
    DLManagedTensorVersioned managed{};
    Tensor tensor;
};

}  // namespace

GivenTensors::~GivenTensors() {
    for (DLManagedTensorVersioned* tensor : versioned_)
        if (tensor->deleter != nullptr) tensor->deleter(tensor);
    for (DLManagedTensor* tensor : unversioned_)
        if (tensor->deleter != nullptr) tensor->deleter(tensor);
}

void GivenTensors::take(DLManagedTensorVersioned* tensor) {
    if (std::find(versioned_.begin(), versioned_.end(), tensor) == versioned_.end()) versioned_.push_back(tensor);
}
void GivenTensors::take(DLManagedTensor* tensor) {
    if (std::find(unversioned_.begin(), unversioned_.end(), tensor) == unversioned_.end())
        unversioned_.push_back(tensor);
}

Result<NamedTensors> read_tensors(const attend_named_tensor* tensors, std::uint64_t count, GivenTensors& given) {
    if (count > most_tensors)
        return Error{
            ErrorCode::limit,
            "tensors: there are " + std::to_string(count) + "; accepted: up to " + std::to_string(most_tensors), ""};
    if (count == 0) return NamedTensors{};
    if (tensors == nullptr) return wrong_argument("tensors: is NULL; accepted: " + std::to_string(count) + " structs");
    // Elements lie one size apart, which all have.
    const std::uint32_t stride = tensors->struct_size;
    if (auto done = check_size(stride, sizeof *tensors, "tensors[0]"); !done) return done.error();
    std::vector<attend_named_tensor> all;
    std::optional<Error> first_problem;
    for (std::uint64_t at = 0; at < count; ++at) {
        const auto* element =
            reinterpret_cast<const attend_named_tensor*>(reinterpret_cast<const std::byte*>(tensors) + at * stride);
        const std::string place = "tensors[" + std::to_string(at) + "]";
        Result<attend_named_tensor> read = read_struct(element, place);
        if (read && element->struct_size != stride)
            read = wrong_argument(place + ": struct_size is " + std::to_string(element->struct_size) +
                                  "; accepted: that of tensors[0], " + std::to_string(stride));
        if (!read) {
            if (!first_problem) first_problem = read.error();
            continue;
        }
        if ((read->flags & ATTEND_TENSOR_GIVEN) != 0) {
            if (read->dlpack != nullptr) given.take(read->dlpack);
            if (read->dlpack_unversioned != nullptr) given.take(read->dlpack_unversioned);
        }
        all.push_back(*read);
    }
    if (first_problem) return *first_problem;

    NamedTensors named;
    for (std::size_t at = 0; at < all.size(); ++at) {
        if (all[at].name == nullptr)
            return wrong_argument("tensors[" + std::to_string(at) +
                                  "]: name is NULL; accepted: query, key, value, ...");
        Result<Tensor> tensor = read_tensor(all[at], std::string("tensor \"") + all[at].name + "\"");
        if (!tensor) return tensor.error();
        named.emplace_back(all[at].name, std::move(*tensor));
    }
    return named;
}

Result<Tensor> tensor_of(const attend_view* view, const std::string& place) {
    const Result<attend_view> read = read_struct(view, place + ": view");
    if (!read) return read.error();
    const auto row = std::find_if(type_table.begin(), type_table.end(),
                                  [&](const TypeRow& candidate) { return candidate.number == read->dtype; });
    if (row == type_table.end())
        return Error{ErrorCode::dtype,
                     place + ": dtype is " + std::to_string(read->dtype) + "; accepted: ATTEND_DTYPE_F32 (1) to " +
                         "ATTEND_DTYPE_F8_E5M2 (15)",
                     ""};
    return checked(place, row->dtype, read->data, 0, read->ndim, read->shape, read->strides);
}

Result<Tensor> tensor_of(const DLTensor* tensor, const std::string& place) {
    if (tensor->device.device_type != kDLCPU)
        return Error{ErrorCode::unsupported,
                     place + ": lies on a device of type " + std::to_string(tensor->device.device_type) +
                         "; accepted: 1, the CPU",
                     ""};
    const DLDataType type = tensor->dtype;
    const auto row = std::find_if(type_table.begin(), type_table.end(), [&](const TypeRow& candidate) {
        return candidate.code == type.code && candidate.bits == type.bits;
    });
    if (type.lanes != 1 || row == type_table.end())
        return Error{ErrorCode::dtype,
                     place + ": data type is code " + std::to_string(type.code) + ", " + std::to_string(type.bits) +
                         " bits, " + std::to_string(type.lanes) +
                         " lanes; accepted: floats, bfloat16, integers and booleans of whole bytes, one lane",
                     ""};
    return checked(place, row->dtype, tensor->data, tensor->byte_offset, tensor->ndim, tensor->shape, tensor->strides);
}

attend_view view_of(const Tensor& tensor) {
    attend_view view{};
    view.struct_size = sizeof view;
    view.dtype = row_of(tensor.dtype).number;
    view.data = tensor.data;
    view.shape = tensor.shape.data();
    view.strides = tensor.strides.data();
    view.ndim = static_cast<std::int32_t>(tensor.rank());
    return view;
}

DLManagedTensorVersioned* dlpack_of(const Tensor& tensor) {
    auto exported = std::make_unique<Exported>();
    exported->tensor = tensor;
    DLManagedTensorVersioned& managed = exported->managed;
    const TypeRow& row = row_of(tensor.dtype);
    managed.version = {DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION};
    managed.manager_ctx = exported.get();
    managed.deleter = [](DLManagedTensorVersioned* self) { delete static_cast<Exported*>(self->manager_ctx); };
    managed.flags = tensor.read_only ? DLPACK_FLAG_BITMASK_READ_ONLY : 0;
    managed.dl_tensor.data = exported->tensor.data;
    managed.dl_tensor.device = {kDLCPU, 0};
    managed.dl_tensor.ndim = static_cast<std::int32_t>(tensor.rank());
    managed.dl_tensor.dtype = {row.code, row.bits, 1};
    managed.dl_tensor.shape = exported->tensor.shape.data();
    managed.dl_tensor.strides = exported->tensor.strides.data();
    return &exported.release()->managed;
}

}  // namespace attend::c_api
