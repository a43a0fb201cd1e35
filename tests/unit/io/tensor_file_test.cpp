// SPDX-License-Identifier: Apache-2.0
// Reading and writing through the extension: round trips, refusals of the writers, files that are complete or absent,
// and damaged files of every format.

#include "io/tensor_file.hpp"

#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <random>

#include "files.hpp"

namespace {

using namespace attend;
using namespace attend::io;
using namespace io_test;

TensorFile sample() {
    TensorFile file;
    file.tensors.emplace_back("query", counting(DType::f32, {2, 3, 5}));
    file.tensors.emplace_back("mask", counting(DType::boolean, {3, 3}));
    file.tensors.emplace_back("key_lengths", counting(DType::i64, {2}));
    file.tensors.emplace_back("empty", counting(DType::f16, {0, 4}));
    return file;
}

// A write that fails leaves neither the file nor a temporary one.
void fails(const Folder& folder, const std::string& name, const TensorFile& file, ErrorCode code,
           const std::string& piece) {
    const std::size_t before = folder.entries();
    const auto result = write_tensor_file(folder.file(name), file);
    INFO("expected: " << piece);
    REQUIRE_FALSE(result);
    INFO("message: " << result.error().message);
    CHECK(result.error().code == code);
    CHECK(result.error().message.find(piece) != std::string::npos);
    CHECK(result.error().message.starts_with(folder.file(name) + ": "));
    CHECK(folder.entries() == before);
}

// Damages `bytes` in one of the ways that files get damaged, and some that only an enemy thinks of.
std::string mutate(std::string bytes, std::mt19937& random) {
    const auto below = [&random](std::size_t bound) { return static_cast<std::size_t>(random()) % bound; };
    const std::size_t header = std::min<std::size_t>(bytes.size(), 400);
    switch (below(7)) {
        case 0:
            for (std::size_t flips = 1 + below(8); flips > 0; --flips) {
                char& byte = bytes[below(bytes.size())];
                byte = static_cast<char>(static_cast<unsigned char>(byte) ^ (1U << below(8)));
            }
            break;
        case 1: bytes.resize(below(bytes.size())); break;
        case 2: bytes.replace(0, 8, little_endian((std::uint64_t{random()} << below(40)) + below(300), 8)); break;
        case 3: {  // a digit or letter of the header
            constexpr std::string_view characters = "0123456789-{}[](),:\"'.eEFTU<>| \\\n";
            for (std::size_t edits = 1 + below(4); edits > 0; --edits) {
                bytes[below(header)] = characters[below(characters.size())];
            }
            break;
        }
        case 4: bytes.insert(below(header), std::string(1 + below(20), static_cast<char>(random()))); break;
        case 5: bytes.erase(below(header), 1 + below(20)); break;
        default: {  // a length field anywhere
            const std::size_t width = std::size_t{1} << below(4);
            const std::size_t at = below(bytes.size());
            bytes.replace(at, width, little_endian(below(2) != 0 ? ~std::uint64_t{0} : random(), width));
            break;
        }
    }
    return bytes;
}

void survives_mutations(const std::string& name, const TensorFile& file, unsigned seed) {
    const Folder folder;
    const std::string path = folder.file(name);
    REQUIRE(write_tensor_file(path, file));
    const std::string good = read_bytes(path);
    std::mt19937 random(seed);
    std::size_t refused = 0;
    for (int trial = 0; trial < 800; ++trial) {
        const std::string bad = mutate(good, random);
        write_bytes(path, bad);
        const auto result = read_tensor_file(path);
        if (result) {
            static_cast<void>(sum_of(*result));
            continue;
        }
        ++refused;
        const Error& error = result.error();
        if (error.code != ErrorCode::input || !error.message.starts_with(path) ||
            error.message.find('\n') != std::string::npos) {
            FAIL("seed " << seed << ", trial " << trial << ": " << error.message);
        }
    }
    CHECK(refused > 300);
    // Every cut is noticed.
    for (std::size_t length = 0; length < good.size(); length += 1 + good.size() / 500) {
        write_bytes(path, good.substr(0, length));
        if (read_tensor_file(path)) FAIL("cut to " << length << " of " << good.size());
    }
}

}  // namespace

TEST_CASE("every dtype round trips through every format that has it") {
    const Folder folder;
    for (const char* name : {"x.safetensors", "x.npy", "x.npz"}) {
        for (const DType dtype : all_dtypes) {
            for (const auto& shape :
                 std::vector<std::vector<std::int64_t>>{{}, {7}, {2, 3, 4}, {3, 0}, {1, 1, 1, 1, 1, 1, 1, 2}}) {
                INFO(name << " " << dtype_name(dtype) << " " << shape_text(shape));
                TensorFile file;
                file.tensors.emplace_back("query", counting(dtype, shape));
                const auto written = write_tensor_file(folder.file(name), file);
                const bool numpy_lacks = dtype == DType::bf16 || dtype == DType::f8_e4m3 || dtype == DType::f8_e5m2;
                if (numpy_lacks && std::string(name) != "x.safetensors") {
                    REQUIRE_FALSE(written);
                    CHECK(written.error().code == ErrorCode::dtype);
                    CHECK(written.error().message.find(std::string("no type for ") + dtype_name(dtype)) !=
                          std::string::npos);
                    continue;
                }
                REQUIRE(written);
                const auto back = read_tensor_file(folder.file(name));
                INFO((back ? "" : back.error().message));
                REQUIRE(back);
                REQUIRE(back->tensors.size() == 1);
                CHECK(back->tensors[0].first == "query");
                CHECK(same(back->tensors[0].second, file.tensors[0].second));
            }
        }
    }
}

TEST_CASE("several tensors, strided ones too, round trip") {
    const Folder folder;
    TensorFile file = sample();
    const Tensor base = counting(DType::f32, {4, 6});
    file.tensors.emplace_back("transposed", base.view({6, 4}, {1, 6}));
    for (const char* name : {"x.safetensors", "x.npz"}) {
        REQUIRE(write_tensor_file(folder.file(name), file, true));
        const auto back = read_tensor_file(folder.file(name));
        REQUIRE(back);
        REQUIRE(back->tensors.size() == 5);
        for (const auto& [key, tensor] : file.tensors) {
            const auto expected = contiguous_copy(tensor);
            REQUIRE(back->find(key) != nullptr);
            CHECK(same(*back->find(key), *expected));
        }
    }
    CHECK(folder.entries() == 2);
}

TEST_CASE("a mapped tensor outlives the file and its replacement") {
    const Folder folder;
    const std::string path = folder.file("x.safetensors");
    REQUIRE(write_tensor_file(path, sample()));
    Tensor kept;
    {
        const auto file = read_tensor_file(path);
        REQUIRE(file);
        kept = *file->find("query");
    }
    CHECK(kept.read_only);
    TensorFile other;
    REQUIRE(write_tensor_file(path, other));
    std::filesystem::remove(path);
    CHECK(same(kept, sample().tensors[0].second));
}

TEST_CASE("the extension chooses the format") {
    for (const char* path : {"x.txt", "x", "x.NPY", "x.safetensors.bak", "dir.npy/x", ".npy", "x."}) {
        INFO(path);
        const auto format = tensor_file_format(path);
        REQUIRE_FALSE(format);
        CHECK(format.error().code == ErrorCode::input);
        CHECK(format.error().message.ends_with("; accepted: .safetensors, .npy, .npz"));
    }
    CHECK(*tensor_file_format("a.b/c.d.npz") == FileFormat::npz);
    CHECK_FALSE(read_tensor_file("x.txt"));
}

TEST_CASE("what cannot be read is named") {
    const Folder folder;
    refuses(folder.file("absent.npy"), "cannot be opened: No such file");
    std::filesystem::create_directory(folder.file("dir.npz"));
    refuses(folder.file("dir.npz"), "is a directory; a regular file is needed");
    REQUIRE(::mkfifo(folder.file("pipe.safetensors").c_str(), 0600) == 0);
    refuses(folder.file("pipe.safetensors"), "is a FIFO; a regular file is needed");
}

TEST_CASE("a write that fails leaves no file") {
    const Folder folder;
    TensorFile two = sample();
    fails(folder, "x.npy", two, ErrorCode::input,
          ".npy holds one tensor, not 4; accepted for several: .safetensors, .npz");
    fails(folder, "x.npy", TensorFile{}, ErrorCode::input, ".npy holds one tensor, not 0");
    fails(folder, "x.txt", two, ErrorCode::input, "has the extension \".txt\"; accepted: .safetensors, .npy, .npz");
    two.tensors.emplace_back("query", two.tensors[0].second);
    fails(folder, "x.npz", two, ErrorCode::input, "tensor \"query\": is there twice");
    fails(folder, "x.safetensors", two, ErrorCode::input, "tensor \"query\": is there twice");
    two.tensors.back().first = "__metadata__";
    fails(folder, "x.safetensors", two, ErrorCode::input, "has the name of the metadata");
    two.tensors.back().first = "\xFF";
    fails(folder, "x.safetensors", two, ErrorCode::input, "has a name that is not UTF-8");
    two.tensors.back() = {"deep", counting(DType::u8, std::vector<std::int64_t>(9, 1))};
    fails(folder, "x.safetensors", two, ErrorCode::input, "has rank 9");
    two.tensors.back() = {"half", counting(DType::bf16, {2})};
    fails(folder, "x.npz", two, ErrorCode::dtype, "tensor \"half\": .npy has no type for BF16");
    two.tensors.back() = {std::string("n\0l", 3), counting(DType::u8, {2})};
    fails(folder, "x.npz", two, ErrorCode::input, "has no name that a member can have");
    two.tensors.pop_back();
    two.metadata = {{"a", "\xFF"}};
    fails(folder, "x.safetensors", two, ErrorCode::input, "is not UTF-8");
    two.metadata = {{"a", "1"}, {"a", "2"}};
    fails(folder, "x.safetensors", two, ErrorCode::input, "is there twice");
    two.metadata.clear();
    fails(folder, "absent/x.safetensors", two, ErrorCode::io, "cannot be written: No such file");
    std::filesystem::create_directory(folder.file("dir.npz"));
    fails(folder, "dir.npz", two, ErrorCode::input, "is a directory");
}

TEST_CASE("a full disk leaves the old file as it was") {
    const Folder folder;
    const std::string path = folder.file("x.safetensors");
    REQUIRE(write_tensor_file(path, sample()));
    const std::string before = read_bytes(path);
    TensorFile large;
    large.tensors.emplace_back("query", counting(DType::f32, {64, 1024}));
    // A limit on the size of files stands for the full disk.
    struct rlimit old {};
    REQUIRE(::getrlimit(RLIMIT_FSIZE, &old) == 0);
    struct rlimit tight = old;
    tight.rlim_cur = 65536;
    const auto handler = std::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &tight) == 0);
    const auto result = write_tensor_file(path, large);
    REQUIRE(::setrlimit(RLIMIT_FSIZE, &old) == 0);
    std::signal(SIGXFSZ, handler);
    REQUIRE_FALSE(result);
    CHECK(result.error().code == ErrorCode::io);
    CHECK(read_bytes(path) == before);
    CHECK(folder.entries() == 1);
}

TEST_CASE("replacing keeps permissions and links") {
    const Folder folder;
    const std::string path = folder.file("x.safetensors");
    REQUIRE(write_tensor_file(path, TensorFile{}));
    std::filesystem::permissions(path, std::filesystem::perms{0600});
    std::filesystem::create_symlink(path, folder.file("link.safetensors"));
    REQUIRE(write_tensor_file(folder.file("link.safetensors"), sample()));
    CHECK(std::filesystem::is_symlink(folder.file("link.safetensors")));
    CHECK(std::filesystem::status(path).permissions() == std::filesystem::perms{0600});
    const auto back = read_tensor_file(path);
    REQUIRE(back);
    CHECK(back->tensors.size() == 4);
}

TEST_CASE("damaged safetensors files are refused or read, never a crash") {
    TensorFile file = sample();
    file.metadata = {{"mechanism", "flash-attention-v2"}, {"options", "{}"}};
    survives_mutations("x.safetensors", file, 1);
}

TEST_CASE("damaged npy files are refused or read, never a crash") {
    TensorFile file;
    file.tensors.emplace_back("query", counting(DType::f32, {2, 3, 5}));
    survives_mutations("x.npy", file, 2);
}

TEST_CASE("damaged npz files are refused or read, never a crash") { survives_mutations("x.npz", sample(), 3); }
