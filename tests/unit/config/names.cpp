// SPDX-License-Identifier: Apache-2.0
// Folding of names, and suggestions for mistyped ones.
#include <string>
#include <vector>

#include "attend/config/names.hpp"
#include "support/catch.hpp"

using namespace attend;

TEST_CASE("names: camelCase folds to snake_case") {
    CHECK(fold_name("Wq") == "wq");
    CHECK(fold_name("lambdaQ1") == "lambda_q1");
    CHECK(fold_name("addBiasKV") == "add_bias_kv");
    CHECK(fold_name("e.normQ.gamma") == "e.norm_q.gamma");
    CHECK(fold_name("windowSize") == "window_size");
    CHECK(fold_name("numFeatures") == "num_features");
    CHECK(fold_name("longSequenceThreshold") == "long_sequence_threshold");
}

TEST_CASE("names: the last letter of an upper-case run begins a word if a lower-case letter follows") {
    CHECK(fold_name("XMLHttp") == "xml_http");
    CHECK(fold_name("numKVHeads") == "num_kv_heads");
    CHECK(fold_name("KVCache") == "kv_cache");
    CHECK(fold_name("useFP16Now") == "use_fp16_now");
    CHECK(fold_name("e.Wq") == "e.wq");
    CHECK(fold_name("a_Wq") == "a_wq");
}

TEST_CASE("names: what is folded already stays") {
    for (const char* name : {"", "window_size", "lambda_q1", "fp32", "a-b.c_d", "flash-attention-v2"}) {
        CHECK(fold_name(name) == name);
    }
    CHECK(fold_name(fold_name("addBiasKV")) == fold_name("addBiasKV"));
}

TEST_CASE("names: the nearest names come first") {
    const std::vector<std::string> names{"window", "num_global", "causal", "window_size"};
    CHECK(nearest_names("windw", names) == std::vector<std::string>{"window"});
    CHECK(nearest_names("causla", names) == std::vector<std::string>{"causal"});
    CHECK(nearest_names("numGlobl", names) == std::vector<std::string>{"num_global"});
    CHECK(nearest_names("WindowSize", names).front() == "window_size");
    CHECK(nearest_names("zzzzzz", names).empty());
    CHECK(nearest_names("", names).empty());
}

TEST_CASE("names: a part of a name finds it, at most max") {
    const std::vector<std::string> names{"linear-attention", "flash-attention", "flash-attention-v2", "flash-decoding"};
    CHECK(nearest_names("linear", names) == std::vector<std::string>{"linear-attention"});
    CHECK(nearest_names("flash", names, 2).size() == 2);
    CHECK(nearest_names(std::string(10000, 'x'), names).empty());
}

TEST_CASE("names: the question is worded for one and for several") {
    const std::vector<std::string> names{"abcd", "abce", "abcf", "zzzz"};
    CHECK(did_you_mean("zzzy", names) == "; did you mean \"zzzz\"?");
    CHECK(did_you_mean("abcx", names) == "; did you mean \"abcd\", \"abce\" or \"abcf\"?");
    CHECK(did_you_mean("qqqqqqqq", names).empty());
    CHECK(join_names(names) == "abcd, abce, abcf, zzzz");
}
