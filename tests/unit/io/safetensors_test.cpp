// SPDX-License-Identifier: Apache-2.0
// safetensors: what is accepted, and each reason for a refusal.

#include "io/safetensors.hpp"
#include "files.hpp"

namespace {

using namespace attend;
using namespace attend::io;
using namespace io_test;

std::string file_of(const std::string& header, const std::string& data) {
    return little_endian(header.size(), 8) + header + data;
}

// One F32 tensor of two elements; the member under test replaces one piece.
std::string entry(const std::string& dtype = R"("F32")", const std::string& shape = "[2]",
                  const std::string& offsets = "[0,8]") {
    return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

const std::string eight = "abcdefgh";

struct Fixture {
    Folder folder;
    std::string path = folder.file("x.safetensors");
    void refused(const std::string& bytes, const std::string& piece) const {
        write_bytes(path, bytes);
        refuses(path, piece);
    }
    TensorFile accepted(const std::string& bytes) const {
        write_bytes(path, bytes);
        auto result = read_safetensors(path);
        INFO((result ? "" : result.error().message));
        REQUIRE(result);
        return *result;
    }
};

}  // namespace

TEST_CASE_METHOD(Fixture, "safetensors: a plain file is mapped, not copied") {
    const std::string header =
        R"({"__metadata__":{"k":"v","e":""},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    const std::string padded = header + std::string((8 - header.size() % 8) % 8, ' ');
    const TensorFile file = accepted(file_of(padded, eight));
    REQUIRE(file.tensors.size() == 1);
    CHECK(file.metadata == std::vector<std::pair<std::string, std::string>>{{"k", "v"}, {"e", ""}});
    const Tensor* tensor = file.find("a");
    REQUIRE(tensor != nullptr);
    CHECK(file.find("b") == nullptr);
    CHECK(tensor->read_only);
    CHECK(std::memcmp(tensor->data, eight.data(), 8) == 0);
    CHECK(tensor->storage != nullptr);
}

TEST_CASE_METHOD(Fixture, "safetensors: unaligned data is legal and copied") {
    for (std::size_t pad = 0; pad < 8; ++pad) {
        const TensorFile file = accepted(file_of(entry() + std::string(pad, ' '), eight));
        const Tensor& tensor = file.tensors[0].second;
        CHECK(reinterpret_cast<std::uintptr_t>(tensor.data) % 4 == 0);
        CHECK(std::memcmp(tensor.data, eight.data(), 8) == 0);
        CHECK(tensor.read_only == ((8 + entry().size() + pad) % 4 == 0));
    }
}

TEST_CASE_METHOD(Fixture, "safetensors: entries may stand in any order, and empty tensors anywhere between") {
    const TensorFile file = accepted(file_of(R"({"late":{"dtype":"U8","shape":[4],"data_offsets":[4,8]},)"
                                             R"("empty":{"dtype":"F64","shape":[0,3],"data_offsets":[4,4]},)"
                                             R"("end":{"dtype":"U8","shape":[0],"data_offsets":[8,8]},)"
                                             R"("early":{"data_offsets":[0,4],"shape":[2,2],"dtype":"I8"}})",
                                             eight));
    REQUIRE(file.tensors.size() == 4);
    CHECK(file.tensors[0].first == "late");
    CHECK(std::memcmp(file.find("late")->data, "efgh", 4) == 0);
    CHECK(std::memcmp(file.find("early")->data, "abcd", 4) == 0);
    CHECK(file.find("empty")->shape == std::vector<std::int64_t>{0, 3});
}

TEST_CASE_METHOD(Fixture, "safetensors: no tensors, scalars, rank 8") {
    CHECK(accepted(file_of("{}", "")).tensors.empty());
    CHECK(accepted(file_of(R"({"__metadata__":{}}   )", "")).tensors.empty());
    CHECK(accepted(file_of(entry(R"("F64")", "[]"), eight)).tensors[0].second.size() == 1);
    CHECK(accepted(file_of(entry(R"("F32")", "[1,1,1,1,1,1,1,2]"), eight)).tensors[0].second.rank() == 8);
}

TEST_CASE_METHOD(Fixture, "safetensors: the header length is checked") {
    refused("", "is 0 bytes long");
    refused("abc", "is 3 bytes long");
    refused(little_endian(100'000'001, 8) + "{}", "header length is 100000001; accepted: at most 100000000");
    refused(little_endian(~std::uint64_t{0}, 8) + "{}", "header length is 18446744073709551615");
    refused(little_endian(3, 8) + "{}", "header length 3 exceeds the 2 bytes that follow");
    refused(little_endian(0, 8), "header: is empty");
}

TEST_CASE_METHOD(Fixture, "safetensors: the header is strict JSON") {
    refused(file_of("[]", ""), "begins with \"[\"");
    refused(file_of(" {}", ""), "begins with \" \"");
    refused(file_of("{", ""), "header");
    refused(file_of("{} x", ""), "header");
    refused(file_of("{}\n", ""), "header");
    refused(file_of(std::string("{}\0", 3), ""), "header");
    refused(file_of("{\"a\xFF\":1}", ""), "UTF-8");
    refused(file_of(R"({"a":1,})", ""), "header");
    refused(file_of(R"({"a":NaN})", ""), "header");
    refused(file_of(R"({"a":)" + std::string(64, '[') + std::string(64, ']') + "}", ""), "64");
    const std::string twice = entry().substr(1, entry().size() - 2);
    refused(file_of("{" + twice + "," + twice + "}", eight), "\"a\"");
    refused(file_of(R"({"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}})", eight), "\"dtype\"");
}

TEST_CASE_METHOD(Fixture, "safetensors: an entry has exactly three members") {
    refused(file_of(R"({"a":1})", ""), "tensor \"a\": is a number; accepted: exactly dtype, shape, data_offsets");
    refused(file_of(R"({"a":{}})", ""), "has no dtype");
    refused(file_of(R"({"a":{"dtype":"F32","data_offsets":[0,8]}})", eight), "has no shape");
    refused(file_of(R"({"a":{"dtype":"F32","shape":[2]}})", eight), "has no data_offsets");
    refused(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8],"note":1}})", eight),
            "has the unknown key \"note\"");
}

TEST_CASE_METHOD(Fixture, "safetensors: dtypes are known and upper case") {
    refused(file_of(entry(R"("f32")"), eight), "dtype is \"\"f32\"\"; accepted: F32, F64");
    refused(file_of(entry(R"("C64")"), eight), "dtype is");
    refused(file_of(entry("4"), eight), "dtype is \"4\"");
}

TEST_CASE_METHOD(Fixture, "safetensors: shapes are at most 8 integers whose products fit") {
    refused(file_of(entry(R"("F32")", "2"), eight), "shape is a number");
    refused(file_of(entry(R"("F32")", "[2.0]"), eight), "shape has the extent \"2.0\"");
    refused(file_of(entry(R"("F32")", "[2e0]"), eight), "shape has the extent");
    refused(file_of(entry(R"("F32")", "[-2]"), eight), "shape has the extent \"-2\"");
    refused(file_of(entry(R"("F32")", R"(["2"])"), eight), "shape has the extent");
    refused(file_of(entry(R"("F32")", "[18446744073709551616]"), eight), "shape has the extent");
    refused(file_of(entry(R"("F32")", "[9223372036854775808]"), eight), "below 2^63");
    refused(file_of(entry(R"("F32")", "[1,1,1,1,1,1,1,1,2]"), eight), "shape has rank 9");
    refused(file_of(entry(R"("F32")", "[4294967296,4294967296,0]", "[0,0]"), ""), "overflows");
    refused(file_of(entry(R"("F32")", "[4294967296,4294967296,2]"), eight), "overflows");
    refused(file_of(entry(R"("F64")", "[2305843009213693952]", "[0,8]"), eight), "overflows");
    refused(file_of(entry(R"("F32")", "[3]"), eight), "holds 8 bytes where shape [3] of F32 needs 12");
    refused(file_of(entry(R"("F64")"), eight), "holds 8 bytes where shape [2] of F64 needs 16");
}

TEST_CASE_METHOD(Fixture, "safetensors: offsets lie in the data, without overlap and holes") {
    refused(file_of(entry(R"("F32")", "[2]", "[0]"), eight), "data_offsets is");
    refused(file_of(entry(R"("F32")", "[2]", "[0,8,8]"), eight), "data_offsets is");
    refused(file_of(entry(R"("F32")", "[2]", "[0.0,8]"), eight), "data_offsets is \"[0.0,8]\"");
    refused(file_of(entry(R"("F32")", "[2]", "[-8,0]"), eight), "data_offsets is");
    refused(file_of(entry(R"("F32")", "[2]", "8"), eight), "data_offsets is");
    refused(file_of(entry(R"("F32")", "[2]", "[8,0]"), eight), "begins after its end");
    refused(file_of(entry(R"("F32")", "[2]", "[1,9]"), eight), "ends outside the data; the file has 8 bytes");
    refused(file_of(entry(R"("F32")", "[2]", "[0,18446744073709551615]"), eight), "ends outside the data");
    refused(file_of(entry(R"("F32")", "[2]", "[4,12]"), "0123" + eight), "leaving a hole at byte 0");
    refused(file_of(entry(), eight + "z"), "1 bytes of data after the last tensor");
    refused(file_of("{}", "z"), "1 bytes of data after the last tensor");
    const auto two = [](const std::string& a, const std::string& b) {
        return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + a +
               R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + b + "}}";
    };
    refused(file_of(two("[0,4]", "[3,7]"), eight), "inside another tensor");
    refused(file_of(two("[0,4]", "[0,4]"), eight.substr(0, 4)), "inside another tensor");
    refused(file_of(two("[0,4]", "[5,9]"), eight + "z"), "leaving a hole at byte 4");
    accepted(file_of(two("[4,8]", "[0,4]"), eight));
}

TEST_CASE_METHOD(Fixture, "safetensors: metadata is text to text, BOOL is 0 or 1") {
    refused(file_of(R"({"__metadata__":1})", ""), "__metadata__: is a number");
    refused(file_of(R"({"__metadata__":{"n":1}})", ""), "__metadata__: \"n\": is a number; accepted: text");
    refused(file_of(R"({"__metadata__":{"n":"a","n":"b"}})", ""), "\"n\"");
    refused(file_of(entry(R"("BOOL")", "[8]"), std::string("\0\1\0\1\0\1\2\1", 8)), "byte 6 of the data is 2");
    accepted(file_of(entry(R"("BOOL")", "[8]"), std::string("\0\1\0\1\0\1\1\1", 8)));
}

TEST_CASE_METHOD(Fixture, "safetensors: names from the file are shown on one line") {
    refused(file_of(R"({"line\nbreak":1})", ""), R"(tensor "line\x0abreak")");
    refused(file_of("{\"" + std::string(500, 'n') + "\":1}", ""), std::string(64, 'n') + "...\"");
}

TEST_CASE_METHOD(Fixture, "safetensors: the written header is padded to 8 and leads with the metadata") {
    TensorFile file;
    file.tensors.emplace_back("flags", counting(DType::boolean, {3}));
    file.tensors.emplace_back("a\"b\\\n", counting(DType::f64, {2}));
    file.metadata = {{"mechanism", "linear-attention"}};
    REQUIRE(write_tensor_file(path, file));
    const std::string bytes = read_bytes(path);
    CHECK(bytes.substr(8, 54) == R"({"__metadata__":{"mechanism":"linear-attention"},"a\"b)");
    std::uint64_t length = 0;
    std::memcpy(&length, bytes.data(), 8);
    CHECK(length % 8 == 0);
    CHECK(bytes.size() == 8 + length + 19);
    const auto back = read_safetensors(path);
    REQUIRE(back);
    CHECK(same(*back->find("flags"), file.tensors[0].second));
    CHECK(same(*back->find("a\"b\\\n"), file.tensors[1].second));
    CHECK(back->find("a\"b\\\n")->read_only);
    CHECK(back->metadata == file.metadata);
}
