// SPDX-License-Identifier: Apache-2.0
// Dispatch by extension, and what the formats share.

#include "io/tensor_file.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <unordered_set>

#include "io/mapped_file.hpp"
#include "io/npy.hpp"
#include "io/safetensors.hpp"
#include "io/text.hpp"

namespace attend::io {
namespace {

Result<void> write_content(OutputFile& out, FileFormat format, const TensorFile& file, const std::string& path) {
    switch (format) {
        case FileFormat::safetensors: return write_safetensors(out, file, path);
        case FileFormat::npy: return write_npy(out, file, path);
        case FileFormat::npz: return write_npz(out, file, path);
    }
    return {};
}

// What a reader would refuse is not written.
Result<void> check_tensors(const TensorFile& file, const std::string& path) {
    std::unordered_set<std::string_view> names;
    for (const auto& [name, tensor] : file.tensors) {
        const std::string place = path + ": tensor " + in_quotes(name);
        if (!valid_utf8(name)) return bad_input(place, "has a name that is not UTF-8", "accepted: text");
        if (!names.insert(name).second) return bad_input(place, "is there twice", "every name may occur once");
        if (tensor.shape.size() > max_rank) {
            return bad_input(place, "has rank " + std::to_string(tensor.shape.size()), "accepted: at most 8");
        }
        if (!checked_byte_size(tensor.shape, dtype_size(tensor.dtype))) {
            return bad_input(place, "has the shape " + shape_text(tensor.shape),
                             "accepted: extents of 0 or more, below 2^63 bytes");
        }
    }
    return {};
}

}  // namespace

const Tensor* TensorFile::find(std::string_view name) const noexcept {
    for (const auto& [candidate, tensor] : tensors) {
        if (candidate == name) return &tensor;
    }
    return nullptr;
}

Result<FileFormat> tensor_file_format(const std::string& path) {
    const std::string extension = std::filesystem::path(path).extension().string();
    if (extension == ".safetensors") return FileFormat::safetensors;
    if (extension == ".npy") return FileFormat::npy;
    if (extension == ".npz") return FileFormat::npz;
    return bad_input(path, extension.empty() ? "has no extension" : "has the extension " + in_quotes(extension),
                     "accepted: .safetensors, .npy, .npz");
}

Result<TensorFile> read_tensor_file(const std::string& path) {
    const auto format = tensor_file_format(path);
    if (!format) return format.error();
    switch (*format) {
        case FileFormat::safetensors: return read_safetensors(path);
        case FileFormat::npy: return read_npy(path);
        case FileFormat::npz: return read_npz(path);
    }
    return TensorFile{};
}

Result<void> write_tensor_file(const std::string& path, const TensorFile& file, bool sync) {
    const auto format = tensor_file_format(path);
    if (!format) return format.error();
    if (auto checked = check_tensors(file, path); !checked) return checked;
    auto out = OutputFile::create(path);
    if (!out) return out.error();
    if (auto written = write_content(*out, *format, file, path); !written) return written;
    return out->commit(sync);
}

Result<Tensor> adopt_bytes(DType dtype, std::vector<std::int64_t> shape, std::span<const std::byte> bytes,
                           const std::shared_ptr<const void>& storage, const std::string& place) {
    if (dtype == DType::boolean) {
        const auto bad = std::find_if(bytes.begin(), bytes.end(), [](std::byte byte) { return byte > std::byte{1}; });
        if (bad != bytes.end()) {
            return bad_input(place,
                             "byte " + std::to_string(bad - bytes.begin()) + " of the data is " +
                                 std::to_string(std::to_integer<int>(*bad)),
                             "accepted in BOOL: 0 and 1");
        }
    }
    if (reinterpret_cast<std::uintptr_t>(bytes.data()) % dtype_size(dtype) == 0) {
        return Tensor::wrap(dtype, std::move(shape), const_cast<std::byte*>(bytes.data()), storage, true);
    }
    auto copy = Tensor::allocate(dtype, std::move(shape), Tensor::Fill::none);
    if (!copy) return Error{copy.error().code, place + ": " + copy.error().message, {}};
    if (!bytes.empty()) std::memcpy(copy->data, bytes.data(), bytes.size());
    return copy;
}

}  // namespace attend::io
