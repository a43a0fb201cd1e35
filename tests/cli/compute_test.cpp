// SPDX-License-Identifier: Apache-2.0
// compute: inputs, options, outputs, reports.
#include "program.hpp"

#include <cmath>
#include <fstream>

using namespace cli_test;

namespace {

attend::Json report(std::vector<std::string> words, const Environment& environment = {}) {
    words.insert(words.begin(), "compute");
    words.emplace_back("--json");
    const Run run = run_attend(words, environment);
    INFO(run.err);
    REQUIRE(run.status == 0);
    return run.json();
}

std::string checksum(const std::vector<std::string>& words, const Environment& environment = {}) {
    return report(words, environment).find("checksum")->as_string();
}

// softmax(q k^T / sqrt(d)) v for one head, rows of d.
std::vector<double> plain_attention(const attend::Tensor& q, const attend::Tensor& k, const attend::Tensor& v,
                                    std::size_t rows, std::size_t keys, std::size_t width, bool causal) {
    const auto query = elements(q), key = elements(k), value = elements(v);
    std::vector<double> out;
    for (std::size_t i = 0; i < rows; ++i) {
        const std::size_t visible = causal ? i + keys - rows + 1 : keys;
        std::vector<double> weight(visible);
        double total = 0;
        for (std::size_t j = 0; j < visible; ++j) {
            for (std::size_t c = 0; c < width; ++c) weight[j] += query[i * width + c] * key[j * width + c];
            total += weight[j] = std::exp(weight[j] / std::sqrt(static_cast<double>(width)));
        }
        for (std::size_t c = 0; c < width; ++c) {
            double sum = 0;
            for (std::size_t j = 0; j < visible; ++j) sum += weight[j] / total * value[j * width + c];
            out.push_back(sum);
        }
    }
    return out;
}

}  // namespace

TEST_CASE("compute --json holds the keys of the contract") {
    const attend::Json json = report({"flash-attention-v2", "--sequence-length", "33", "--heads", "2", "--dim", "16"});
    for (const char* key :
         {"mechanism", "reason", "backend", "threads", "shapes", "time_ms", "gflops", "workspace_bytes", "peak_bytes",
          "checksum", "warnings", "options", "plugin", "plugin_version", "exactness"})
        CHECK(json.find(key) != nullptr);
    CHECK(json.find("mechanism")->as_string() == "flash-attention-v2");
    CHECK(json.find("gflops")->as_double() > 0);
    CHECK(json.find("peak_bytes")->as_int64() > 1000000);
    CHECK(json.find("checksum")->as_string().size() == 16);
    for (const char* tensor : {"query", "key", "value", "output"})
        CHECK(*json.find("shapes")->find(tensor) == attend::Json::array().push(1).push(2).push(33).push(16));
}

TEST_CASE("compute for people is a list of aligned lines with the reason") {
    const Run run = run_attend({"compute", "flash-attention-v2", "--sequence-length", "8"});
    CHECK(run.status == 0);
    for (const char* part : {"mechanism ", "reason ", "named by the caller", "checksum ", "time "})
        CHECK(contains(run.out, part));
}

TEST_CASE("generated tensors are those of the reference generator") {
    // Philox4x32-10 of seed 0 under the name data/query, through Box-Muller.
    const Folder folder;
    const std::string out = folder / "out.safetensors";
    report({"echo-attention", "--plugin", plugin("echo"), "--sequence-length", "2", "--dim", "2", "--output", out});
    const auto zero = elements(load(out).tensors.front().second);
    const std::vector<double> wanted{1.2789715, 0.7975386, -0.2783351, 0.6102987};
    REQUIRE(zero.size() == 4);
    for (std::size_t at = 0; at < 4; ++at) CHECK(zero[at] == Approx(wanted[at]).margin(1e-6));
    report({"echo-attention", "--plugin", plugin("echo"), "--sequence-length", "1", "--dim", "4", "--output", out});
    CHECK(elements(load(out).tensors.front().second) == zero);  // by row-major index, not by shape
    report({"echo-attention", "--plugin", plugin("echo"), "--sequence-length", "2", "--dim", "2", "--seed", "1",
            "--output", out});
    CHECK(elements(load(out).tensors.front().second) != zero);
}

TEST_CASE("query, key and value of a generated call differ from one another") {
    const Folder folder;
    report({"flash-attention-v2", "--sequence-length", "1", "--sequence-length-k", "1", "--dim", "4", "--output",
            folder / "value.npz"});
    report({"echo-attention", "--plugin", plugin("echo"), "--sequence-length", "1", "--dim", "4", "--output",
            folder / "query.npz"});
    // With one key the output is the value.
    CHECK(largest_difference(load(folder / "value.npz").tensors.front().second,
                             load(folder / "query.npz").tensors.front().second) > 0.1);
    report({"flash-attention-v2", "--sequence-length", "1", "--dim", "4", "--seed", "9223372036854775813", "--output",
            folder / "seeded.npz"});
    const auto value = elements(load(folder / "seeded.npz").tensors.front().second);
    const std::vector<double> wanted{-1.0546873, -1.9099602, -0.0937326, 0.6447548};
    for (std::size_t at = 0; at < 4; ++at) CHECK(value[at] == Approx(wanted[at]).margin(1e-6));
}

TEST_CASE("sizes of generated tensors") {
    const attend::Json shapes = *report({"flash-attention-v2", "--sequence-length", "4", "--sequence-length-k", "6",
                                         "--batch", "2", "--heads", "4", "--kv-heads", "2", "--dim", "8"})
                                     .find("shapes");
    CHECK(*shapes.find("query") == attend::Json::array().push(2).push(4).push(4).push(8));
    CHECK(*shapes.find("key") == attend::Json::array().push(2).push(2).push(6).push(8));
    CHECK(*shapes.find("output") == attend::Json::array().push(2).push(4).push(4).push(8));
}

TEST_CASE("an input is needed, and sizes do not go with a file") {
    const Folder folder;
    const std::string file = folder / "q.safetensors";
    save(file, {{"query", ramp({1, 1, 3, 4})}});
    check_error(run_attend({"compute", "flash-attention-v2"}), 2,
                {"there is no input", "--input", "--sequence-length"});
    check_error(run_attend({"compute"}), 2, {"no mechanism is named"});
    for (const char* flag : {"--sequence-length", "--sequence-length-k", "--batch", "--dim"})
        check_error(run_attend({"compute", "flash-attention-v2", "--input", file, flag, "3"}), 2,
                    {std::string(flag) + ": is 3 beside --input"});
    for (const char* value : {"-1", "x", "1.5", "1e3", "99999999999999999999"})
        check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", value}), 2,
                    {"--sequence-length: is \"" + std::string(value) + "\""});
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "4", "--heads", "0"}), 2,
                {"--heads: is \"0\""});
}

TEST_CASE("sizes beyond the memory of the machine") {
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "1000000000", "--heads", "100000"}),
                4, {"need"});
}

TEST_CASE("a call on tensors from a file agrees with plain attention") {
    const Folder folder;
    const std::string in = folder / "in.safetensors", out = folder / "out.safetensors";
    const auto q = ramp({1, 1, 5, 4}, 0.02f), k = ramp({1, 1, 7, 4}, 0.03f), v = ramp({1, 1, 7, 4}, 0.05f);
    save(in, {{"query", q}, {"key", k}, {"value", v}});
    for (const bool causal : {false, true}) {
        std::vector<std::string> words{"flash-attention-v2", "--input", in, "--output", out};
        if (causal) words.emplace_back("--causal");
        report(words);
        const auto got = elements(*load(out).find("output"));
        const auto wanted = plain_attention(q, k, v, 5, 7, 4, causal);
        REQUIRE(got.size() == wanted.size());
        for (std::size_t at = 0; at < got.size(); ++at) CHECK(got[at] == Approx(wanted[at]).margin(1e-6));
    }
}

TEST_CASE("ranks: [N,D] and packed tensors come back as they were given") {
    const Folder folder;
    const std::string flat = folder / "flat.safetensors", packed = folder / "packed.safetensors",
                      split = folder / "split.safetensors", out = folder / "out.safetensors";
    const auto q = ramp({3, 8});
    save(flat, {{"query", q}});
    report({"flash-attention-v2", "--input", flat, "--output", out});
    CHECK(load(out).find("output")->shape == std::vector<std::int64_t>{3, 8});

    const auto values = elements(q);
    std::vector<float> heads_first;
    for (std::size_t h = 0; h < 2; ++h)
        for (std::size_t i = 0; i < 3; ++i)
            for (std::size_t c = 0; c < 4; ++c) heads_first.push_back(static_cast<float>(values[i * 8 + h * 4 + c]));
    save(packed, {{"query", ramp({1, 3, 8})}});
    save(split, {{"query", floats({1, 2, 3, 4}, heads_first)}});
    report({"flash-attention-v2", "--input", packed, "--heads", "2", "--output", out});
    const auto result = load(out);
    CHECK(result.find("output")->shape == std::vector<std::int64_t>{1, 3, 8});
    report({"flash-attention-v2", "--input", split, "--output", out});
    const auto by_heads = elements(*load(out).find("output")), joined = elements(*result.find("output"));
    for (std::size_t h = 0; h < 2; ++h)
        for (std::size_t i = 0; i < 3; ++i)
            for (std::size_t c = 0; c < 4; ++c)
                CHECK(joined[i * 8 + h * 4 + c] == Approx(by_heads[(h * 3 + i) * 4 + c]).margin(1e-7));
    check_error(run_attend({"compute", "flash-attention-v2", "--input", split, "--heads", "4"}), 2,
                {"--heads: is 4", "2 heads"});
}

TEST_CASE("flag --lse and --scores are written, and refused where they are not defined") {
    const Folder folder;
    const std::string in = folder / "in.safetensors", out = folder / "out.safetensors";
    save(in, {{"query", ramp({1, 1, 4, 4})}});
    report({"flash-attention-v2", "--input", in, "--lse", "--scores", "--output", out});
    const auto file = load(out);
    CHECK(file.find("lse")->shape == std::vector<std::int64_t>{1, 1, 4});
    REQUIRE(file.find("scores") != nullptr);
    const auto scores = elements(*file.find("scores"));
    for (std::size_t row = 0; row < 4; ++row)
        CHECK(scores[row * 4] + scores[row * 4 + 1] + scores[row * 4 + 2] + scores[row * 4 + 3] == Approx(1.0));
    save(in, {{"query", ramp({1, 1, 4, 4})}, {"key", ramp({1, 1, 4, 4})}, {"value", ramp({1, 1, 4, 4})}});
    check_error(run_attend({"compute", "linear-attention", "--input", in, "--scores"}), 2,
                {"linear-attention", "scores"});
    check_error(run_attend({"compute", "echo-attention", "--plugin", plugin("echo"), "--input", in, "--lse"}), 2,
                {"echo-attention", "lse"});
}

TEST_CASE("the metadata of the output repeats the call") {
    const Folder folder;
    const std::string out = folder / "out.safetensors";
    report({"flash-attention-v2", "--sequence-length", "4", "--causal", "--output", out});
    std::map<std::string, std::string> metadata;
    for (const auto& [key, value] : load(out).metadata) metadata[key] = value;
    CHECK(metadata.size() == 6);
    CHECK(metadata["mechanism"] == "flash-attention-v2");
    CHECK(metadata["plugin"] == "attend.flash");
    CHECK_FALSE(metadata["plugin_version"].empty());
    CHECK_FALSE(metadata["backend"].empty());
    CHECK_FALSE(metadata["commit"].empty());
    const auto options = attend::parse_json(metadata["options"], "options");
    REQUIRE(options.ok());
    CHECK(options->find("causal")->as_bool());
}

TEST_CASE("formats of input and output follow the extension") {
    const Folder folder;
    const auto q = ramp({1, 1, 4, 4});
    save(folder / "q.safetensors", {{"query", q}});
    save(folder / "q.npy", {{"query", q}});
    save(folder / "q.npz", {{"query", q}});
    const std::string sum = checksum({"flash-attention-v2", "--input", folder / "q.safetensors"});
    CHECK(checksum({"flash-attention-v2", "--input", folder / "q.npy", "--output", folder / "o.npy"}) == sum);
    CHECK(checksum({"flash-attention-v2", "--input", folder / "q.npz", "--output", folder / "o.npz"}) == sum);
    CHECK(load(folder / "o.npy").tensors.front().second.shape == q.shape);
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "4", "--output", folder / "o.txt"}),
                2, {"o.txt", ".safetensors, .npy, .npz"});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", folder / "q.bin"}), 2, {"q.bin"});
    check_error(
        run_attend({"compute", "flash-attention-v2", "--sequence-length", "4", "--lse", "--output", folder / "o2.npy"}),
        2, {".npy holds one tensor"});
    CHECK_FALSE(std::filesystem::exists(folder / "o2.npy"));
}

TEST_CASE("an output that cannot be written is a failure of the machine and leaves nothing behind") {
    const Folder folder;
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "4", "--output",
                            folder / "no/such/folder/o.npz"}),
                4, {"o.npz"});
}

TEST_CASE("files that cannot be read") {
    const Folder folder;
    check_error(run_attend({"compute", "flash-attention-v2", "--input", folder / "none.safetensors"}), 2,
                {"none.safetensors"});
    const std::string bad = folder.write("bad.safetensors", "not tensors");
    check_error(run_attend({"compute", "flash-attention-v2", "--input", bad}), 2, {"bad.safetensors"});
}

TEST_CASE("tensors with other names are refused with the known ones") {
    const Folder folder;
    const std::string file = folder / "in.safetensors";
    save(file, {{"query", ramp({1, 1, 3, 4})}, {"kye", ramp({1, 1, 3, 4})}});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", file}), 2,
                {"unknown tensor \"kye\"", "did you mean \"key\"", "weight.<name>"});
    save(file, {{"query", ramp({1, 1, 3, 4})}, {"weight.wz", ramp({4, 4})}});
    check_error(run_attend({"compute", "standard-mha", "--input", file}), 2, {"unknown weight \"wz\""});
    save(file, {{"query", ramp({1, 1, 3, 4})}, {"input.alibi_slope", ramp({1})}});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", file}), 2,
                {"unknown input \"alibi_slope\"", "alibi_slopes"});
    save(file, {{"key", ramp({1, 1, 3, 4})}});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", file}), 2, {"\"query\" is missing"});
}

TEST_CASE("masks are BOOL or U8, lengths I32 or I64") {
    const Folder folder;
    const std::string file = folder / "in.safetensors";
    const auto q = ramp({1, 1, 2, 4});
    save(file, {{"query", q}, {"mask", bytes(attend::DType::boolean, {2, 2}, {1, 0, 1, 1})}});
    const std::string boolean = checksum({"flash-attention-v2", "--input", file});
    save(file, {{"query", q}, {"mask", bytes(attend::DType::u8, {2, 2}, {7, 0, 1, 255})}});
    CHECK(checksum({"flash-attention-v2", "--input", file}) == boolean);
    save(file, {{"query", q}});
    CHECK(checksum({"flash-attention-v2", "--input", file, "--causal"}) ==
          boolean);  // the mask above is the causal one
    save(file, {{"query", q}, {"mask", ramp({2, 2})}});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", file}), 2,
                {"\"mask\" has data type F32", "BOOL, U8"});
    save(file, {{"query", q}, {"keyLengths", bytes(attend::DType::i32, {1}, {1, 0, 0, 0})}});
    const std::string short_keys = checksum({"flash-attention-v2", "--input", file});
    save(file, {{"query", q}, {"key_lengths", bytes(attend::DType::i64, {1}, {1, 0, 0, 0, 0, 0, 0, 0})}});
    CHECK(checksum({"flash-attention-v2", "--input", file}) == short_keys);
    save(file, {{"query", q}, {"key_lengths", ramp({1})}});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", file}), 2,
                {"\"key_lengths\" has data type F32", "I32, I64"});
}

TEST_CASE("half-precision tensors are computed in F32 and come back as they were") {
    const Folder folder;
    const std::string in = folder / "in.safetensors", out = folder / "out.safetensors";
    const auto half = attend::convert(ramp({1, 1, 3, 4}), attend::DType::f16);
    REQUIRE(half.ok());
    save(in, {{"query", *half}});
    report({"flash-attention-v2", "--input", in, "--output", out});
    CHECK(load(out).find("output")->dtype == attend::DType::f16);
}

TEST_CASE("flag --set takes JSON and bare values, in either spelling") {
    const std::vector<std::string> base{"flash-attention-v2", "--sequence-length", "40", "--dim", "8"};
    const auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> words = base;
        words.insert(words.end(), more.begin(), more.end());
        return report(words);
    };
    const std::string causal = with({"--causal"}).find("checksum")->as_string();
    CHECK(with({"--set", "causal=true"}).find("checksum")->as_string() == causal);
    CHECK(with({"--set", "causal=true"}).find("options")->find("causal")->as_bool());
    CHECK(with({"--set", "causalAlignment=top-left", "--causal"})
              .find("options")
              ->find("causal_alignment")
              ->as_string() == "top-left");
    CHECK(with({"--set", "causal_alignment=\"top-left\""}).find("options")->find("causal_alignment")->as_string() ==
          "top-left");
    CHECK(with({"--set=window_left=-1", "--set", "window_right=2"}).find("options")->find("window_right")->as_int64() ==
          2);
    CHECK(with({"--scale", "-0.5"}).find("options")->find("scale")->as_double() == -0.5);
    CHECK(with({"--softcap", "30", "--window-size", "5"}).find("options")->find("softcap")->as_double() == 30.0);
    CHECK(with({"--dropout", "0.5", "--seed", "9"}).find("options")->find("seed")->as_int64() == 9);
}

TEST_CASE("wrong options are named with what is accepted") {
    const std::vector<std::string> base{"compute", "flash-attention-v2", "--sequence-length", "4"};
    const auto with = [&](std::vector<std::string> more) {
        std::vector<std::string> words = base;
        words.insert(words.end(), more.begin(), more.end());
        return run_attend(words);
    };
    check_error(with({"--set", "blok_size=4"}), 2, {"unknown option \"blok_size\"", "did you mean \"block_size\""});
    check_error(with({"--set", "block_size=x"}), 2, {"option \"block_size\" is \"x\"", "accepted: integer"});
    check_error(with({"--set", "causal"}), 2, {"--set: is \"causal\"", "name=value"});
    check_error(with({"--set", "=1"}), 2, {"name=value"});
    check_error(with({"--dropout", "1"}), 2, {"dropout"});
    check_error(with({"--scale", "wide"}), 2, {"scale"});
    check_error(with({"--causal", "--set", "causal=false"}), 2, {"option \"causal\" is given twice"});
    check_error(with({"--set", "scale=1", "--set", "scale=2"}), 2, {"option \"scale\" is given twice"});
    check_error(with({"--precision", "fp64"}), 2, {"--precision: is \"fp64\"", "fp32, bf16, fp16, int8, fp8"});
    check_error(with({"--precision", "int8"}), 2, {"precision int8"});
    check_error(with({"--seed", "-1"}), 2, {"--seed: is \"-1\""});
    check_error(run_attend({"compute", "linear-attention", "--sequence-length", "4", "--softcap", "3"}), 2,
                {"linear-attention", "softcap"});
}

TEST_CASE("flag --options gives many at once, and --set goes before it") {
    const Folder folder;
    const std::string file = folder.write("o.json", R"({"causal": true, "windowSize": 3, "scale": 0.5})");
    const attend::Json options =
        *report({"flash-attention-v2", "--sequence-length", "8", "--options", file, "--set", "window_size=5"})
             .find("options");
    CHECK(options.find("causal")->as_bool());
    CHECK(options.find("window_size")->as_int64() == 5);
    CHECK(options.find("scale")->as_double() == 0.5);
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "8", "--options",
                            folder.write("list.json", "[1]")}),
                2, {"is an array", "object"});
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "8", "--options",
                            folder.write("bad.json", "{\"causal\": tru}")}),
                2, {"bad.json", "line 1"});
    check_error(
        run_attend({"compute", "flash-attention-v2", "--sequence-length", "8", "--options", folder / "none.json"}), 2,
        {"none.json: cannot be read"});
}

TEST_CASE("flag --seed seeds generated tensors, also of mechanisms without an option of that name") {
    const std::vector<std::string> echo{"echo-attention", "--plugin", plugin("echo"), "--sequence-length", "4"};
    std::vector<std::string> seeded = echo;
    seeded.insert(seeded.end(), {"--seed", "18446744073709551615"});
    CHECK(checksum(echo) != checksum(seeded));
    CHECK(checksum({"flash-attention-v2", "--sequence-length", "4", "--seed", "3"}) !=
          checksum({"flash-attention-v2", "--sequence-length", "4"}));
}

TEST_CASE("a seed that nothing reads is a warning, on standard error and in the report") {
    const Folder folder;
    const std::string file = folder / "q.safetensors";
    save(file, {{"query", ramp({1, 1, 3, 4})}});
    const std::vector<std::string> words{"compute", "echo-attention", "--plugin", plugin("echo"), "--input",
                                         file,      "--seed",         "3",        "--json"};
    const Run run = run_attend(words);
    CHECK(run.json().find("warnings")->size() == 1);
    CHECK(contains(run.err, "attend: warning: "));
    std::vector<std::string> quiet = words;
    quiet.emplace_back("--quiet");
    CHECK(run_attend(quiet).err.empty());
}

TEST_CASE("weights come from the file or from the initialiser") {
    const Folder folder;
    const std::string file = folder / "in.safetensors";
    save(file, {{"query", ramp({1, 3, 4})}});
    const std::vector<std::string> base{"standard-mha", "--input", file, "--heads", "2", "--set", "form=projected"};
    const attend::Json defaults = report(base);
    CHECK(contains(defaults.find("reason")->as_string(), "default weights"));
    std::vector<std::string> seeded = base;
    seeded.insert(seeded.end(), {"--weight-seed", "7"});
    CHECK(checksum(seeded) != defaults.find("checksum")->as_string());
    const auto eye = floats({4, 4}, {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1});
    save(file,
         {{"query", ramp({1, 3, 4})}, {"weight.Wq", eye}, {"weight.Wk", eye}, {"weight.Wv", eye}, {"weight.Wo", eye}});
    const std::string packed = folder / "packed.safetensors";
    save(packed, {{"query", ramp({1, 3, 4})}});
    const std::string out = folder / "a.npz", other = folder / "b.npz";
    report({"standard-mha", "--input", file, "--heads", "2", "--set", "bias=false", "--output", out});
    report({"flash-attention-v2", "--input", packed, "--heads", "2", "--output", other});
    CHECK(largest_difference(load(out).tensors.front().second, load(other).tensors.front().second) < 1e-6);
}

TEST_CASE("shapes that do not fit are named") {
    const Folder folder;
    const std::string file = folder / "in.safetensors";
    save(file, {{"query", ramp({1, 1, 3, 4})}, {"key", ramp({1, 1, 3, 5})}, {"value", ramp({1, 1, 3, 4})}});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", file}), 2, {"key", "[1, 1, 3, 5]"});
    save(file, {{"query", ramp({1, 1, 3, 4})}, {"mask", bytes(attend::DType::u8, {2, 3}, {1, 1, 1, 1, 1, 1})}});
    check_error(run_attend({"compute", "flash-attention-v2", "--input", file}), 2, {"mask"});
}

TEST_CASE("the result does not depend on the number of threads") {
    const std::vector<std::string> base{"flash-attention-v2", "--sequence-length", "300", "--heads", "3", "--threads"};
    const auto with = [&](const char* threads) {
        std::vector<std::string> words = base;
        words.emplace_back(threads);
        return report(words);
    };
    CHECK(with("1").find("threads")->as_int64() == 1);
    CHECK(with("1").find("checksum")->as_string() == with("5").find("checksum")->as_string());
}

TEST_CASE("flag --backend lowers the instruction set that really runs") {
    CHECK(report({"flash-attention-v2", "--sequence-length", "8", "--backend", "baseline"})
              .find("backend")
              ->as_string() == "baseline");
    CHECK(report({"flash-attention-v2", "--sequence-length", "8"}, {{"ATTEND_BACKEND", "baseline"}})
              .find("backend")
              ->as_string() == "baseline");
}

TEST_CASE("flag --repeat reports the median and gives the same result") {
    const attend::Json json = report({"flash-attention-v2", "--sequence-length", "16", "--repeat", "5"});
    CHECK(json.find("repeat")->as_int64() == 5);
    CHECK(json.find("checksum")->as_string() == checksum({"flash-attention-v2", "--sequence-length", "16"}));
    check_error(run_attend({"compute", "flash-attention-v2", "--sequence-length", "16", "--repeat", "0"}), 2,
                {"--repeat"});
}

TEST_CASE("auto: the selector decides and the report says why") {
    const Folder folder;
    const attend::Json unruled =
        report({"auto", "--sequence-length", "64", "--config", folder.write("none.json", R"({"version": 1})")});
    CHECK(unruled.find("mechanism")->as_string() == "flash-attention-v2");
    CHECK(contains(unruled.find("reason")->as_string(), "no rule selected"));
    const std::string rules =
        folder.write("c.json",
                     R"({"version": 1, "rules": [{"condition": "seqLen > 100", "mechanism": "linear-attention"},
            {"condition": "default", "mechanism": "flash-attention-v2", "options": {"block_size": 64}}]})");
    CHECK(report({"auto", "--sequence-length", "101", "--config", rules}).find("mechanism")->as_string() ==
          "linear-attention");
    const attend::Json ruled =
        report({"auto", "--sequence-length", "100", "--config", rules, "--causal", "--seed", "5"});
    CHECK(contains(ruled.find("reason")->as_string(), "rule 1 (default)"));
    CHECK(ruled.find("options")->find("block_size")->as_int64() == 64);
    CHECK(ruled.find("options")->find("causal")->as_bool());
    CHECK(ruled.find("options")->find("seed")->as_int64() == 5);
}

TEST_CASE("a named mechanism is never replaced by another") {
    check_error(run_attend({"compute", "cross-attention", "--sequence-length", "4", "--causal"}), 2,
                {"cross-attention"});
    check_error(run_attend({"compute", "flsh-attention-v2", "--sequence-length", "4"}), 2,
                {"unknown mechanism", "flash-attention-v2"});
}
