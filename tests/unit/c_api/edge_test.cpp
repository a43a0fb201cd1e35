// SPDX-License-Identifier: Apache-2.0
// The edge itself: structs of older and newer callers, NULL, wrong names, texts that are too long.
#include "support.hpp"

using namespace c_api_test;

namespace {

attend::ForwardInputs small_inputs() {
    support::Random random(2);
    return support::make_inputs(random, {1, 2, 2, 6, 6, 4, 4});
}

// A struct of a newer caller: ours and a field behind it.
template <class T>
struct Newer {
    T known;
    std::uint64_t newer;
};

}  // namespace

// Layouts that programs in other languages are written against.
static_assert(sizeof(void*) != 8 ||
              (sizeof(attend_error_text) == 1536 && sizeof(attend_open_settings) == 80 && sizeof(attend_view) == 40 &&
               sizeof(attend_named_tensor) == 48 && sizeof(attend_forward_request) == 80 && sizeof(DLTensor) == 48 &&
               sizeof(DLManagedTensor) == 64 && sizeof(DLManagedTensorVersioned) == 80));
static_assert(offsetof(attend_error_text, message) == 24 && offsetof(attend_error_text, hint) == 1024);
static_assert(sizeof(void*) != 8 ||
              (offsetof(attend_open_settings, threads) == 32 && offsetof(attend_open_settings, built_in_dir) == 72));
static_assert(sizeof(void*) != 8 || (offsetof(attend_view, shape) == 16 && offsetof(attend_view, ndim) == 32));
static_assert(sizeof(void*) != 8 || (offsetof(attend_forward_request, options_json) == 32 &&
                                     offsetof(attend_forward_request, kv_heads) == 64));
static_assert(sizeof(void*) != 8 ||
              (offsetof(DLManagedTensorVersioned, flags) == 24 && offsetof(DLManagedTensorVersioned, dl_tensor) == 32 &&
               offsetof(DLTensor, shape) == 24 && offsetof(DLTensor, byte_offset) == 40));

TEST_CASE("c api edge: codes have the service's names") {
    using attend::ErrorCode;
    for (std::int32_t at = 0; at <= static_cast<std::int32_t>(ErrorCode::stale_handle); ++at)
        CHECK(std::string(attend_code_name(at + 1)) == attend::error_name(static_cast<ErrorCode>(at)));
    CHECK(static_cast<std::int32_t>(ErrorCode::internal) + 1 == ATTEND_E_INTERNAL);
    CHECK(static_cast<std::int32_t>(ErrorCode::stale_handle) + 1 == ATTEND_E_STALE_HANDLE);
    CHECK(static_cast<std::int32_t>(ErrorCode::not_found) + 1 == ATTEND_E_NOT_FOUND);
    CHECK(static_cast<std::int32_t>(ErrorCode::memory) + 1 == ATTEND_E_MEMORY);
    CHECK(std::string(attend_code_name(ATTEND_E_NONE)) == "E_NONE");
    for (const attend_code code : {-1, 18, 1 << 30}) CHECK(std::string(attend_code_name(code)) == "E_INTERNAL");
    CHECK(std::string(attend_version()).find('.') != std::string::npos);
}

TEST_CASE("c api edge: a request of an older caller") {
    // What an older program had: everything up to num_tensors. What follows in memory is not the library's to read.
    constexpr std::uint32_t older = offsetof(attend_forward_request, options_json);
    Call call("flash-attention-v2");
    call.add(small_inputs());
    call.request.struct_size = older;
    const auto garbage = reinterpret_cast<const char*>(std::uintptr_t{16});
    call.request.options_json = call.request.facts_json = call.request.precision = garbage;
    call.request.heads = -7;
    for (auto& tensor : call.tensors) tensor.struct_size = sizeof tensor;
    const ResultHandle result = call.run();
    CHECK(same_bits(view_of(result, "output"), support::service().forward(small_inputs(), {}).value().output));
}

TEST_CASE("c api edge: tensors of an older and of a newer caller lie their own size apart") {
    const attend::ForwardInputs inputs = small_inputs();
    Call model("flash-attention-v2");
    model.add(inputs);
    const auto expected = support::service().forward(inputs, {}).value().output;

    struct Older {
        std::uint32_t struct_size, flags;
        const char* name;
        const attend_view* view;
    };
    std::vector<Older> older;
    std::vector<Newer<attend_named_tensor>> newer;
    for (const attend_named_tensor& tensor : model.tensors) {
        older.push_back({sizeof(Older), 0, tensor.name, tensor.view});
        newer.push_back({tensor, 0});
        newer.back().known.struct_size = sizeof newer.back();
    }
    for (const void* array : {static_cast<const void*>(older.data()), static_cast<const void*>(newer.data())}) {
        attend_forward_request request = model.request;
        request.tensors = static_cast<const attend_named_tensor*>(array);
        request.num_tensors = older.size();
        attend_result* handle = nullptr;
        Problem problem;
        CHECK(attend_forward(service(), &request, &handle, problem) == ATTEND_E_NONE);
        const ResultHandle result(handle);
        INFO(problem.message());
        REQUIRE(result != nullptr);
        CHECK(same_bits(view_of(result, "output"), expected));
    }
    newer[1].newer = 1;
    attend_forward_request request = model.request;
    request.tensors = &newer[0].known;
    request.num_tensors = newer.size();
    attend_result* handle = nullptr;
    Problem problem;
    CHECK(attend_forward(service(), &request, &handle, problem) == ATTEND_E_UNSUPPORTED);
    CHECK(problem.says("tensors[1]: struct_size is"));
    CHECK(handle == nullptr);
}

TEST_CASE("c api edge: a newer caller's fields must be zero") {
    Call call("flash-attention-v2");
    call.add(small_inputs());
    Newer<attend_forward_request> request{call.request, 0};
    request.known.struct_size = sizeof request;
    request.known.tensors = call.tensors.data();
    request.known.num_tensors = call.tensors.size();
    attend_result* handle = nullptr;
    CHECK(attend_forward(service(), &request.known, &handle, nullptr) == ATTEND_E_NONE);
    attend_result_free(handle);
    request.newer = std::uint64_t{1} << 63;
    Problem problem;
    CHECK(attend_forward(service(), &request.known, &handle, problem) == ATTEND_E_UNSUPPORTED);
    CHECK(handle == nullptr);
    CHECK(problem.says("request: struct_size is " + std::to_string(sizeof request)));

    Newer<attend_open_settings> settings{sized<attend_open_settings>(), 5};
    settings.known.struct_size = sizeof settings;
    attend_service* opened = nullptr;
    CHECK(attend_service_open(&settings.known, &opened, problem) == ATTEND_E_UNSUPPORTED);
    CHECK(opened == nullptr);
}

TEST_CASE("c api edge: sizes that no struct has") {
    Call call("flash-attention-v2");
    call.add(small_inputs());
    for (const std::uint32_t size : {0u, 4u, 7u, 12u, 4097u, 8192u, 0xFFFFFFFFu}) {
        INFO(size);
        call.request.struct_size = size;
        CHECK(call.refused(ATTEND_E_INPUT).says("request: struct_size is " + std::to_string(size)));
    }
    call.request.struct_size = sizeof call.request;
    const ResultHandle result = call.run();
    auto view = sized<attend_view>();
    for (const std::uint32_t size : {0u, 4u, 9u, 5000u}) {
        view.struct_size = size;
        CHECK(attend_result_view(result.get(), "output", &view, nullptr) == ATTEND_E_INPUT);
        CHECK(view.data == nullptr);
    }
    // An older caller's view gets what it has room for; a newer one's further fields become zero.
    view = sized<attend_view>();
    view.struct_size = offsetof(attend_view, shape);
    const std::int64_t own = 7;
    view.shape = &own;
    CHECK(attend_result_view(result.get(), "output", &view, nullptr) == ATTEND_E_NONE);
    CHECK(view.data != nullptr);
    CHECK(view.shape == &own);
    CHECK(view.struct_size == offsetof(attend_view, shape));
    Newer<attend_view> wide{sized<attend_view>(), 99};
    wide.known.struct_size = sizeof wide;
    CHECK(attend_result_view(result.get(), "output", &wide.known, nullptr) == ATTEND_E_NONE);
    CHECK(wide.newer == 0);
    CHECK(wide.known.struct_size == sizeof wide);
    CHECK(wide.known.ndim == 4);
}

TEST_CASE("c api edge: error texts of any size") {
    Call call("flash-attention-v2", R"({"causl": true})");
    call.add(small_inputs());
    ResultHandle result;
    Problem whole;
    CHECK(call.run(service(), result, whole) == ATTEND_E_OPTION);
    CHECK(whole.says("causl"));
    CHECK(whole.says("did you mean \"causal\""));
    CHECK(call.run(service(), result, nullptr) == ATTEND_E_OPTION);
    for (std::uint32_t size = 0; size <= 64; ++size) {
        attend_error_text text;
        std::memset(&text, 0x5A, sizeof text);
        text.struct_size = size;
        CHECK(call.run(service(), result, &text) == ATTEND_E_OPTION);
        CHECK(text.struct_size == size);
        const auto* bytes = reinterpret_cast<const unsigned char*>(&text);
        for (std::size_t at = std::max<std::size_t>(size, 4); at < sizeof text; ++at) REQUIRE(bytes[at] == 0x5A);
        if (size >= 8) CHECK(text.code == ATTEND_E_OPTION);
        if (size > 8) CHECK(std::memchr(text.name, 0, size - 8) != nullptr);
        if (size > 24) {
            REQUIRE(std::memchr(text.message, 0, size - 24) != nullptr);
            CHECK(whole.message().rfind(text.message, 0) == 0);
        }
    }
    // Success clears what an earlier call left.
    call.request.options_json = nullptr;
    CHECK(call.run(service(), result, whole) == ATTEND_E_NONE);
    CHECK(whole.text.code == ATTEND_E_NONE);
    CHECK(whole.message().empty());
    CHECK(std::string(whole.text.name).empty());
    // A sentence longer than its field ends between characters, wherever these fall.
    for (std::string name : {"x", "xx"}) {
        while (name.size() < 2000) name += "\xC3\xA4";
        call.request.mechanism = name.c_str();
        const std::string cut = call.refused(ATTEND_E_NOT_FOUND).message();
        CHECK(cut.size() >= 998);
        CHECK(cut.size() <= 999);
        CHECK(cut.substr(cut.size() - 2) == "\xC3\xA4");
    }
}

TEST_CASE("c api edge: NULL where something must be") {
    Problem problem;
    attend_result* result = nullptr;
    CHECK(attend_forward(service(), nullptr, &result, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("request: is NULL"));
    Call call("flash-attention-v2");
    call.add(small_inputs());
    call.request.tensors = call.tensors.data();
    call.request.num_tensors = call.tensors.size();
    CHECK(attend_forward(nullptr, &call.request, &result, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("service: is NULL"));
    CHECK(attend_forward(service(), &call.request, nullptr, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("result: is NULL"));
    call.request.tensors = nullptr;
    CHECK(attend_forward(service(), &call.request, &result, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("tensors: is NULL"));
    call.request.num_tensors = std::uint64_t{1} << 40;
    CHECK(attend_forward(service(), &call.request, &result, problem) == ATTEND_E_LIMIT);
    call.request.num_tensors = 0;
    CHECK(attend_forward(service(), &call.request, &result, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("tensor \"query\" is missing"));
    CHECK(attend_service_open(nullptr, nullptr, problem) == ATTEND_E_INPUT);
    char* json = nullptr;
    CHECK(attend_list(nullptr, nullptr, &json, problem) == ATTEND_E_INPUT);
    CHECK(attend_list(service(), nullptr, nullptr, problem) == ATTEND_E_INPUT);
    CHECK(attend_describe(service(), nullptr, &json, problem) == ATTEND_E_INPUT);
    CHECK(attend_recommend(service(), nullptr, &json, problem) == ATTEND_E_OPTION);
    CHECK(attend_plugins(nullptr, &json, nullptr) == ATTEND_E_INPUT);
    CHECK(attend_set_log_level(nullptr, problem) == ATTEND_E_INPUT);
    CHECK(attend_set_log_level("loud", problem) == ATTEND_E_OPTION);
    CHECK(problem.says("\"loud\"; accepted: trace"));
    CHECK(attend_set_log_level("off", problem) == ATTEND_E_NONE);
    CHECK(attend_set_log_level("warn", problem) == ATTEND_E_NONE);
    CHECK(json == nullptr);
    CHECK(attend_result_count(nullptr) == 0);
    CHECK(attend_result_name(nullptr, 0) == nullptr);
    CHECK(attend_result_record(nullptr) == nullptr);
    auto view = sized<attend_view>();
    CHECK(attend_result_view(nullptr, "output", &view, problem) == ATTEND_E_INPUT);
    DLManagedTensorVersioned* tensor = nullptr;
    CHECK(attend_result_dlpack(nullptr, "output", &tensor, problem) == ATTEND_E_INPUT);
    attend_service_close(nullptr);
    attend_result_free(nullptr);
    attend_text_free(nullptr);

    Call good("flash-attention-v2");
    good.add(small_inputs());
    const ResultHandle made = good.run();
    CHECK(attend_result_view(made.get(), nullptr, &view, problem) == ATTEND_E_INPUT);
    CHECK(attend_result_view(made.get(), "output", nullptr, problem) == ATTEND_E_INPUT);
    CHECK(attend_result_dlpack(made.get(), "output", nullptr, problem) == ATTEND_E_INPUT);
    CHECK(attend_result_name(made.get(), 1) == nullptr);
    good.tensors[1].name = nullptr;
    CHECK(good.refused(ATTEND_E_INPUT).says("tensors[1]: name is NULL"));
}

TEST_CASE("c api edge: unknown names come with the nearest ones") {
    Call call("flash-atention-v2");
    call.add(small_inputs());
    CHECK(call.refused(ATTEND_E_NOT_FOUND).says("\"flash-attention-v2\""));
    call.request.mechanism = "flash-attention-v2";
    call.request.facts_json = R"({"taskTpe": "search"})";
    CHECK(call.refused(ATTEND_E_OPTION).says("did you mean \"taskType\""));
    call.request.facts_json = R"({"seqLen": [1]})";
    CHECK(call.refused(ATTEND_E_OPTION).says("facts: variable \"seqLen\" is an array"));
    call.request.facts_json = "[]";
    CHECK(call.refused(ATTEND_E_INPUT).says("facts: are an array"));
    call.request.facts_json = nullptr;
    call.request.options_json = "{\"causal\": true";
    CHECK(call.refused(ATTEND_E_INPUT).says("options: line 1"));
    call.request.options_json = "3";
    CHECK(call.refused(ATTEND_E_INPUT).says("options: are a number"));
    call.request.options_json = nullptr;
    call.request.precision = "fp33";
    CHECK(call.refused(ATTEND_E_UNSUPPORTED).says("accepted: fp32, bf16, fp16"));
    call.request.precision = nullptr;
    call.request.heads = -1;
    call.refused(ATTEND_E_SHAPE);
    call.request.heads = 0;
    call.request.flags = 1u << 7;
    call.refused(ATTEND_E_UNSUPPORTED);
    call.request.flags = 0;
    call.tensors[1].name = "kee";
    CHECK(call.refused(ATTEND_E_INPUT).says("did you mean \"key\""));
    call.tensors[1].name = "query";
    CHECK(call.refused(ATTEND_E_INPUT).says("is there twice"));
    call.tensors[1].name = "weight.nothing";
    call.refused(ATTEND_E_WEIGHT);
    call.tensors[1].name = "mask";
    CHECK(call.refused(ATTEND_E_DTYPE).says("accepted: BOOL, U8"));
    call.tensors[1].name = "key";
    call.tensors[1].flags = ATTEND_TENSOR_GIVEN;
    CHECK(call.refused(ATTEND_E_INPUT).says("without deleter"));
    call.tensors[1].flags = 1u << 9;
    call.refused(ATTEND_E_UNSUPPORTED);
    call.tensors[1].flags = 0;
    call.tensors[1].view = nullptr;
    CHECK(call.refused(ATTEND_E_INPUT).says("is given in 0 forms"));
    auto view = sized<attend_view>();
    view.dtype = 16;
    call.tensors[1].view = &view;
    CHECK(call.refused(ATTEND_E_DTYPE).says("dtype is 16"));
    view.struct_size = 0;
    CHECK(call.refused(ATTEND_E_INPUT).says("tensor \"key\": view: struct_size is 0"));

    Call good("flash-attention-v2");
    good.add(small_inputs());
    const ResultHandle result = good.run();
    Problem problem;
    CHECK(attend_result_view(result.get(), "outptu", &view, problem) == ATTEND_E_NOT_FOUND);
    CHECK(problem.says("did you mean \"output\""));
    CHECK(attend_result_view(result.get(), "lse", &view, problem) == ATTEND_E_NOT_FOUND);
    CHECK(problem.says("it has: output"));
}

TEST_CASE("c api edge: queries of every rank and of extent 0 end well for every mechanism") {
    int accepted = 0, refused = 0;
    const std::vector<float> elements(256, 0.5f);
    for (const auto& mechanism : support::service().registry()->list())
        for (std::int32_t rank = 0; rank <= 8; ++rank)
            for (std::int32_t empty = -1; empty < rank; ++empty) {
                INFO(mechanism->name << ", rank " << rank << ", axis " << empty << " empty");
                std::vector<std::int64_t> shape(8, 1);
                shape[static_cast<std::size_t>(std::max(rank - 1, 0))] = 16;
                if (empty >= 0) shape[static_cast<std::size_t>(empty)] = 0;
                auto view = sized<attend_view>();
                view.dtype = ATTEND_DTYPE_F32;
                view.data = const_cast<float*>(elements.data());
                view.shape = shape.data();
                view.ndim = rank;
                auto query = sized<attend_named_tensor>();
                query.name = "query";
                query.view = &view;
                Call call(mechanism->name);
                call.tensors = {query};
                ResultHandle result;
                Problem problem;
                const attend_code code = call.run(service(), result, problem);
                CHECK(code != ATTEND_E_INTERNAL);
                CHECK((result != nullptr) == (code == ATTEND_E_NONE));
                CHECK(problem.message().empty() == (code == ATTEND_E_NONE));
                ++(code == ATTEND_E_NONE ? accepted : refused);
            }
    CHECK(accepted > 40);
    CHECK(refused > 40 * 5);
}

TEST_CASE("c api edge: services from configurations and settings") {
    const auto open = [](attend_open_settings settings, Problem& problem) {
        attend_service* handle = nullptr;
        const attend_code code = attend_service_open(&settings, &handle, problem);
        CHECK((handle != nullptr) == (code == ATTEND_E_NONE));
        attend_service_close(handle);
        return code;
    };
    Problem problem;
    auto settings = sized<attend_open_settings>();
    settings.config_json = R"({"version": 1, "service": {"default_mechanism": "local-attention"}})";
    CHECK(open(settings, problem) == ATTEND_E_NONE);
    settings.config_file = ATTEND_SOURCE_DIR "/config/defaults/attend.json";
    CHECK(open(settings, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("both given"));
    settings.config_json = nullptr;
    settings.flags = ATTEND_OPEN_NO_PROBE;
    settings.backend = "baseline";
    settings.threads = 1;
    // Its rules name a mechanism that is not built in.
    CHECK(open(settings, problem) == ATTEND_E_RULE);
    const char* dirs[] = {ATTEND_BINARY_DIR "/tests/extra_plugins"};
    settings.plugin_dirs = dirs;
    settings.num_plugin_dirs = 1;
    CHECK(open(settings, problem) == ATTEND_E_NONE);
    settings.flags = 8;
    CHECK(open(settings, problem) == ATTEND_E_UNSUPPORTED);
    settings.flags = 0;
    settings.threads = -2;
    open(settings, problem);
    CHECK(problem.says("settings: threads"));
    settings.threads = 0;
    settings.backend = "avx1024";
    open(settings, problem);
    CHECK(problem.says("settings: backend"));
    settings.backend = nullptr;
    settings.config_file = "/nowhere/attend.json";
    CHECK(open(settings, problem) == ATTEND_E_IO);
    settings.config_file = nullptr;
    settings.config_json = R"({"version": 1, "service": {"default_mechanism": "no-such-attention"}})";
    CHECK(open(settings, problem) == ATTEND_E_OPTION);
    CHECK(problem.says("no-such-attention"));
    settings.config_json = R"({"version": 1, "rules": [{"condition": "seqLen >", "mechanism": "local-attention"}]})";
    CHECK(open(settings, problem) == ATTEND_E_RULE);
    CHECK(std::string(problem.text.hint).find('^') != std::string::npos);
    settings.config_json = nullptr;
    const char* files[] = {ATTEND_SOURCE_DIR "/README.md", nullptr};
    settings.plugin_files = files;
    settings.num_plugin_files = 1;
    CHECK(open(settings, problem) == ATTEND_E_PLUGIN);
    CHECK(problem.says("README.md"));
    settings.num_plugin_files = 2;
    CHECK(open(settings, problem) == ATTEND_E_INPUT);
    CHECK(problem.says("plugin_files[1]"));
    settings.plugin_files = nullptr;
    CHECK(open(settings, problem) == ATTEND_E_INPUT);
    settings.num_plugin_files = 0;
    settings.built_in_dir = "/nowhere";
    attend_service* handle = nullptr;
    REQUIRE(attend_service_open(&settings, &handle, problem) == ATTEND_E_NONE);
    const Service empty(handle);
    Call call("flash-attention-v2");
    call.add(small_inputs());
    ResultHandle result;
    CHECK(call.run(empty.get(), result, problem) == ATTEND_E_NOT_FOUND);
}
