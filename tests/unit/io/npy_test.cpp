// SPDX-License-Identifier: Apache-2.0
// .npy and .npz: what is accepted, and each reason for a refusal.

#include "io/npy.hpp"

#include "files.hpp"
#include "io/zip.hpp"

namespace {

using namespace attend;
using namespace attend::io;
using namespace io_test;

std::string npy(const std::string& header, const std::string& data, char major = 1, char minor = 0) {
    return std::string("\x93NUMPY") + major + minor + little_endian(header.size(), major == 1 ? 2 : 4) + header + data;
}

std::string header(const std::string& descr = "'<f4'", const std::string& order = "False",
                   const std::string& shape = "(2,)") {
    return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

const std::string eight = "abcdefgh";

struct Member {
    std::string name;
    std::string data;
    std::uint16_t method = 0;
    std::uint16_t flags = 0;
    std::uint32_t crc_error = 0;
    std::string local_name = {};
    std::uint32_t local_sizes = 0xFFFFFFFE;  // this value: the true size
    std::uint32_t size_error = 0;
    std::string local_extra = {};
};

std::string zip(const std::vector<Member>& members, const std::string& comment = "", std::uint16_t count_error = 0) {
    std::string out;
    std::string directory;
    for (const Member& member : members) {
        const std::uint32_t crc =
            io::crc32(std::as_bytes(std::span(member.data.data(), member.data.size()))) + member.crc_error;
        const auto size = static_cast<std::uint32_t>(member.data.size()) + member.size_error;
        const std::uint32_t local_size = member.local_sizes == 0xFFFFFFFE ? size : member.local_sizes;
        const std::string& local_name = member.local_name.empty() ? member.name : member.local_name;
        const auto common = [&](std::uint32_t sizes, const std::string& name, std::size_t extra) {
            return little_endian(20, 2) + little_endian(member.flags, 2) + little_endian(member.method, 2) +
                   little_endian(0, 4) + little_endian(crc, 4) + little_endian(sizes, 4) + little_endian(sizes, 4) +
                   little_endian(name.size(), 2) + little_endian(extra, 2);
        };
        directory += "PK\1\2" + little_endian(20, 2) + common(size, member.name, 0) + little_endian(0, 10) +
                     little_endian(out.size(), 4) + member.name;
        out += "PK\3\4" + common(local_size, local_name, member.local_extra.size()) + local_name + member.local_extra +
               member.data;
    }
    const std::size_t count = members.size() + count_error;
    return out + directory + "PK\5\6" + little_endian(0, 4) + little_endian(count, 2) + little_endian(count, 2) +
           little_endian(directory.size(), 4) + little_endian(out.size(), 4) + little_endian(comment.size(), 2) +
           comment;
}

struct Fixture {
    Folder folder;
    std::string path = folder.file("x.npy");
    std::string archive = folder.file("x.npz");
    void refused(const std::string& bytes, const std::string& piece) const {
        write_bytes(path, bytes);
        refuses(path, piece);
    }
    void refused_zip(const std::string& bytes, const std::string& piece) const {
        write_bytes(archive, bytes);
        refuses(archive, piece);
    }
    Tensor accepted(const std::string& bytes) const {
        write_bytes(path, bytes);
        auto result = read_tensor_file(path);
        INFO((result ? "" : result.error().message));
        REQUIRE(result);
        REQUIRE(result->tensors.size() == 1);
        CHECK(result->tensors[0].first == "query");
        return result->tensors[0].second;
    }
};

}  // namespace

TEST_CASE_METHOD(Fixture, "npy: versions 1 to 3, keys in any order, either quote, blanks between tokens") {
    for (const char major : {'\1', '\2', '\3'}) {
        const Tensor tensor = accepted(npy(header(), eight, major));
        CHECK(tensor.dtype == DType::f32);
        CHECK(tensor.shape == std::vector<std::int64_t>{2});
        CHECK(std::memcmp(tensor.data, eight.data(), 8) == 0);
    }
    CHECK(accepted(npy("{\"shape\":(2,1),\"fortran_order\":False,\"descr\":\"<i4\"}", eight)).dtype == DType::i32);
    CHECK(accepted(npy("  { 'shape' : ( 1 , 2 , ) ,'fortran_order' :False , 'descr':'<u4' , }   \n", eight)).shape ==
          std::vector<std::int64_t>{1, 2});
    CHECK(accepted(npy(header("'<f8'", "False", "()"), eight)).size() == 1);
    CHECK(accepted(npy(header("'|u1'", "False", "(2, 0, 3)"), "")).size() == 0);
    CHECK(accepted(npy(header("'<i1'", "False", "(8,)"), eight)).dtype == DType::i8);
}

TEST_CASE_METHOD(Fixture, "npy: data aligned to its items is mapped") {
    CHECK(accepted(npy(std::string(54 - header().size() + 64 - 0, ' ') + header(), eight)).read_only);
    CHECK_FALSE(accepted(npy(std::string(53 - header().size() + 64, ' ') + header(), eight)).read_only);
}

TEST_CASE_METHOD(Fixture, "npy: magic, version and length") {
    refused("", "is 0 bytes long");
    refused("\x93NUMPY", "is 6 bytes long");
    refused("NUMPY     {}{}{}{}", "does not begin with");
    refused(npy(header(), eight, 4), "version 4.0; accepted: versions 1.0, 2.0, 3.0");
    refused(npy(header(), eight, 0), "version 0.0");
    refused(npy(header(), eight, 1, 1), "version 1.1");
    refused(npy(header(), "").substr(0, 20), "header length");
    refused(npy(header(), eight, 2).substr(0, 11), "ends inside its header length");
    refused(std::string("\x93NUMPY\2\0\xFF\xFF\xFF\xFF", 12) + header(), "header length 4294967295 exceeds");
}

TEST_CASE_METHOD(Fixture, "npy: the header is a literal with exactly three keys") {
    refused(npy("", eight), "does not begin with '{'");
    refused(npy("[]", eight), "does not begin with '{'");
    refused(npy("{}", eight), "has no descr");
    refused(npy("{'descr':'<f4','fortran_order':False}", eight), "has no shape");
    refused(npy("{'descr':'<f4','shape':(2,)}", eight), "has no fortran_order");
    refused(npy("{'descr':'<f4','fortran_order':False,'shape':(2,),'extra':1}", eight), "unknown key \"extra\"");
    refused(npy("{'descr':'<f4','descr':'<f4','fortran_order':False,'shape':(2,)}", eight), "\"descr\" twice");
    refused(npy("{descr:'<f4'}", eight), "has no quoted key");
    refused(npy("{'descr' '<f4'}", eight), "has no ':'");
    refused(npy("{'descr':'<f4' 'shape':(2,)}", eight), "neither ',' nor '}'");
    refused(npy("{'descr':'<f4", eight), "no quoted text");
    refused(npy("{'descr':'\\x3cf4','fortran_order':False,'shape':(2,)}", eight), "no quoted text");
    refused(npy(header() + "+ 1", eight), "goes on after the closing '}'");
    refused(npy("{'descr':__import__('os').system('true'),'fortran_order':False,'shape':(2,)}", eight),
            "no quoted text");
    refused(npy("{'descr':'<f4','fortran_order':0,'shape':(2,)}", eight), "fortran_order other than True or False");
    refused(npy("{,}", eight), "has no quoted key");
}

TEST_CASE_METHOD(Fixture, "npy: shapes are tuples of integers") {
    const auto shape = [](const std::string& text) { return npy(header("'<f4'", "False", text), eight); };
    refused(shape("[2]"), "no tuple");
    refused(shape("2"), "no tuple");
    refused(shape("(2)"), "no tuple");
    refused(shape("(,)"), "something else than integers");
    refused(shape("(2,,)"), "something else than integers");
    refused(shape("(2 1)"), "something else than integers");
    refused(shape("(2.0,)"), "something else than integers");
    refused(shape("(True,)"), "something else than integers");
    refused(shape("(2L,)"), "something else than integers");
    refused(shape("(0x2,)"), "something else than integers");
    refused(shape("(02,)"), "leading zero");
    refused(shape("(-2,)"), "negative extent");
    refused(shape("(99999999999999999999,)"), "beyond 63 bits");
    refused(shape("(1,1,1,1,1,1,1,1,2)"), "rank above 8");
    refused(shape("(4294967296, 4294967296, 0)"), "overflows");
    refused(shape("(2,"), "something else than integers");
}

TEST_CASE_METHOD(Fixture, "npy: only plain little-endian C-ordered types") {
    const auto descr = [](const std::string& text) { return npy(header(text), eight); };
    refused(descr("'>f4'"), "descr \">f4\" is big-endian; accepted: '<f4'");
    refused(descr("'|O'"), "objects (pickle)");
    refused(descr("'<c8'"), "is complex");
    refused(descr("'<U2'"), "is text");
    refused(descr("'|S4'"), "is text");
    refused(descr("'|V4'"), "structured");
    refused(descr("[('a', '<f4')]"), "structured descr");
    refused(descr("'<M8[s]'"), "date or time");
    refused(descr("'<f16'"), "not a known type");
    refused(descr("'f4'"), "not a known type");
    refused(descr("'=f4'"), "not a known type");
    refused(descr("'|f4'"), "not a known type");
    refused(descr("''"), "not a known type");
    refused(npy(header("'<f4'", "True"), eight), "fortran_order is True; accepted: C order");
    refused(npy(header("'|b1'", "False", "(8,)"), eight), "byte 0 of the data is 97; accepted in BOOL: 0 and 1");
}

TEST_CASE_METHOD(Fixture, "npy: short and surplus data") {
    refused(npy(header(), eight.substr(0, 7)),
            "has 7 bytes of data where shape [2] of F32 needs 8; the data is cut off");
    refused(npy(header(), eight + "z"), "has 9 bytes of data where shape [2] of F32 needs 8; there is surplus data");
}

TEST_CASE_METHOD(Fixture, "npz: stored members by name") {
    const std::string a = npy(header(), eight);
    // What streaming writers leave in the local header: reserved zip64 field, or sizes that follow the data.
    const std::string zip64 =
        little_endian(1, 2) + little_endian(16, 2) + little_endian(a.size(), 8) + little_endian(a.size(), 8);
    write_bytes(archive, zip({{"query.npy", a},
                              {"weight.q/x.npy", a, 0, 0, 0, {}, 0xFFFFFFFF, 0, zip64},
                              {"key.npy", a, 0, 8, 0, {}, 0}},
                             "a comment"));
    const auto file = read_tensor_file(archive);
    INFO((file ? "" : file.error().message));
    REQUIRE(file);
    REQUIRE(file->tensors.size() == 3);
    CHECK(file->tensors[1].first == "weight.q/x");
    for (const auto& named : file->tensors) CHECK(std::memcmp(named.second.data, eight.data(), 8) == 0);
    write_bytes(archive, zip({}));
    CHECK(read_tensor_file(archive));
}

TEST_CASE_METHOD(Fixture, "npz: each refusal") {
    const std::string a = npy(header(), eight);
    refused_zip("", "no zip archive or is cut off");
    refused_zip("PK nonsense that is long enough to be one", "no zip archive or is cut off");
    refused_zip(zip({{"a.npy", a}}).substr(0, 100), "no zip archive or is cut off");
    refused_zip(zip({{"a.npy", a}}) + "z", "no zip archive or is cut off");
    refused_zip(zip({{"a.npy", a, 8}}), "member \"a.npy\": is deflated (method 8); accepted: stored");
    refused_zip(zip({{"a.npy", a, 14}}), "has compression method 14");
    refused_zip(zip({{"a.npy", a, 0, 1}}), "is encrypted");
    refused_zip(zip({{"a.npy", a, 0, 0, 1}}), "where the directory says");
    refused_zip(zip({{"a.npy", a}, {"a.npy", a}}), "member \"a.npy\": is there twice");
    refused_zip(zip({{"a.npy", a, 0, 0, 0, "b.npy"}}), "differs between its own header and the directory");
    refused_zip(zip({{"a.npy", a, 0, 0, 0, {}, 7}}), "differs between its own header and the directory");
    refused_zip(zip({{"a.npy", a, 0, 0, 0, {}, 0xFFFFFFFE, 1}}), "reaches beyond the data");
    refused_zip(zip({{"a.txt", a}}), "is not called <tensor>.npy");
    refused_zip(zip({{".npy", a}}), "is not called <tensor>.npy");
    refused_zip(zip({{"folder/", ""}}), "is not called <tensor>.npy");
    refused_zip(zip({{"\xFF.npy", a}}), "is not called <tensor>.npy");
    refused_zip(zip({{"a.npy", a}}, "", 1), "member 1: has no entry in the directory");
    refused_zip(zip({{"a.npy", a}, {"b.npy", a}}, "", 0xFFFF), "surplus bytes in its directory");
    refused_zip(zip({{"a.npy", npy(header("'>f4'"), eight)}}), "member \"a.npy\": descr \">f4\" is big-endian");
    refused_zip(zip({{"a.npy", a + "z"}}), "surplus data");

    std::string overlap = zip({{"a.npy", a}, {"b.npy", a}});
    const std::size_t second = overlap.rfind("PK\1\2");
    overlap.replace(second + 42, 4, little_endian(0, 4));
    overlap.replace(second + 46, 5, "a.npy");
    refused_zip(overlap, "is there twice");
    // The same member under two names would need two headers; a lying offset finds the wrong one.
    overlap.replace(second + 46, 5, "b.npy");
    refused_zip(overlap, "differs between its own header and the directory");
    std::string outside = zip({{"a.npy", a}});
    outside.replace(outside.rfind("PK\1\2") + 42, 4, little_endian(0xFFFFFFF0, 4));
    refused_zip(outside, "has no header at byte 4294967280");
    std::string big = zip({{"a.npy", a}});
    big.replace(big.rfind("PK\1\2") + 24, 4, "\xFF\xFF\xFF\xFF");
    refused_zip(big, "needs zip64");
    std::string big_end = zip({{"a.npy", a}});
    big_end.replace(big_end.rfind("PK\5\6") + 16, 4, "\xFF\xFF\xFF\xFF");
    refused_zip(big_end, "needs zip64");
    std::string disks = zip({{"a.npy", a}});
    disks.replace(disks.rfind("PK\5\6") + 4, 2, little_endian(1, 2));
    refused_zip(disks, "split over several disks");
    std::string beyond = zip({{"a.npy", a}});
    beyond.replace(beyond.rfind("PK\5\6") + 12, 4, little_endian(100000, 4));
    refused_zip(beyond, "beyond the end record");
}

TEST_CASE("crc32 gives the published check value, also in pieces") {
    const std::string text = "123456789";
    const auto bytes = std::as_bytes(std::span(text));
    CHECK(io::crc32(bytes) == 0xCBF43926U);
    CHECK(io::crc32(bytes.subspan(4), io::crc32(bytes.first(4))) == 0xCBF43926U);
    CHECK(io::crc32({}) == 0);
}
