// SPDX-License-Identifier: Apache-2.0
#include "attend/kv_cache.hpp"

#include <array>

#include "service/call_description.hpp"
#include "service/status.hpp"

namespace attend {
namespace {

struct ErrorText {
    std::array<char, 512> text{};
    attend_error error{sizeof error, 512, ATTEND_OK, 0, text.data(), nullptr};
};

// How keys are stored, or queries and outputs are typed, by name.
std::optional<DType> storage_type(const std::string& name) {
    return name == "fp32"   ? std::optional(DType::f32)
           : name == "fp16" ? std::optional(DType::f16)
           : name == "bf16" ? std::optional(DType::bf16)
           : name == "int8" ? std::optional(DType::i8)
                            : std::nullopt;
}

const attend_kv_cache_extension* cache_functions(const MechanismRecord& mechanism) {
    if (mechanism.functions->get_extension == nullptr) return nullptr;
    const auto* functions = static_cast<const attend_kv_cache_extension*>(
        mechanism.functions->get_extension(mechanism.lib, ATTEND_EXT_KV_CACHE));
    if (functions == nullptr || functions->struct_size < sizeof *functions || functions->create == nullptr ||
        functions->destroy == nullptr || functions->append == nullptr || functions->truncate == nullptr ||
        functions->fork == nullptr || functions->length == nullptr || functions->info == nullptr ||
        functions->step_workspace == nullptr || functions->step == nullptr)
        return nullptr;
    return functions;
}

// The options of a step, checked and completed, and its description.
class StepDescription : private CallDescription {
public:
    StepDescription(const MechanismPtr& mechanism, const CallRequest& request, const CallForm& form)
        : CallDescription(mechanism, request, form) {}

    Result<attend_kv_cache*> create(const attend_kv_cache_extension& functions, const KvCacheSettings& settings,
                                    const attend_kv_cache_desc& desc, std::uint32_t max_workers) {
        const SizeRequest sizes{1,
                                settings.heads,
                                settings.kv_heads,
                                1,
                                settings.capacity,
                                settings.head_dim,
                                settings.value_dim > 0 ? settings.value_dim : settings.head_dim};
        if (auto done = describe_sizes(sizes, max_workers); !done) return done.error();
        std::vector<attend_value> values = abi_values();
        plan_->desc.options = {values.data(), static_cast<std::uint32_t>(values.size()), sizeof(attend_value)};
        plan_->desc.flags |= ATTEND_PLAN_NEED_LSE;  // a step may ask for it
        ErrorText failure;
        attend_kv_cache* cache = nullptr;
        const attend_status status = functions.create(mechanism_->lib, &plan_->desc, &desc, &cache, &failure.error);
        if (status != ATTEND_OK) return plugin_error(*mechanism_, status, failure.text.data());
        if (cache == nullptr) return fail(ErrorCode::plugin, "made no cache and reported no error");
        return cache;
    }
};

Error needs(const std::string& what, std::int64_t value, const std::string& accepted) {
    return {ErrorCode::option, "kv-cache: " + what + " is " + std::to_string(value) + "; accepted: " + accepted, ""};
}

}  // namespace

struct KvCache::State {
    MechanismPtr mechanism;  // keeps the plugin open
    const attend_kv_cache_extension* functions{};
    attend_kv_cache* cache{};
    std::int64_t heads{}, kv_heads{}, head_dim{}, value_dim{}, sequences{};
    DType storage{}, precision{};
    std::uint32_t workers{1};

    State() = default;
    State(const State&) = delete;
    State& operator=(const State&) = delete;
    ~State() {
        if (cache != nullptr) functions->destroy(cache);
    }

    Result<void> done(attend_status status, const ErrorText& failure) const {
        if (status == ATTEND_OK) return {};
        return plugin_error(*mechanism, status, failure.text.data());
    }
    Error fail(ErrorCode code, const std::string& what) const { return {code, mechanism->name + ": " + what, ""}; }

    // A tensor [n, heads, any, width] of float32 or the given type.
    Result<Tensor> checked(const Tensor& tensor, const char* name, std::size_t count, std::int64_t number_of_heads,
                           std::int64_t width, DType own) const {
        if (tensor.rank() != 4 || tensor.shape[0] != static_cast<std::int64_t>(count) ||
            tensor.shape[1] != number_of_heads || tensor.shape[3] != width)
            return fail(ErrorCode::shape, std::string(name) + " " + shape_text(tensor.shape) + "; accepted: [" +
                                              std::to_string(count) + ", " + std::to_string(number_of_heads) +
                                              ", any, " + std::to_string(width) + "]");
        if (!is_model_float(tensor.dtype))
            return fail(ErrorCode::dtype, std::string(name) + " has data type " + dtype_name(tensor.dtype) +
                                              "; accepted: F32, F16, BF16, F64");
        if (tensor.dtype == own || tensor.dtype == DType::f32) return tensor;
        return convert(tensor, DType::f32);
    }
};

KvCache::KvCache(std::unique_ptr<State> state) : state_(std::move(state)) {}
KvCache::KvCache(KvCache&&) noexcept = default;
KvCache& KvCache::operator=(KvCache&&) noexcept = default;
KvCache::~KvCache() = default;

Result<KvCache> KvCache::open(const AttentionService& service, const KvCacheSettings& settings) {
    Result<MechanismPtr> mechanism = service.registry()->get(settings.mechanism, "kv-cache");
    if (!mechanism) return mechanism.error();
    auto state = std::make_unique<State>();
    state->mechanism = *mechanism;
    state->functions = cache_functions(**mechanism);
    if (state->functions == nullptr) {
        std::string offering;
        for (const MechanismPtr& other : service.registry()->list())
            if (cache_functions(*other) != nullptr) offering += (offering.empty() ? "" : ", ") + other->name;
        return Error{ErrorCode::unsupported,
                     (*mechanism)->name + ": offers no cache of keys and values; accepted: " +
                         (offering.empty() ? "a mechanism that does (none is loaded)" : offering),
                     ""};
    }
    constexpr std::int64_t most = std::int64_t{1} << 31;
    const struct {
        const char* name;
        std::int64_t value, least;
    } numbers[] = {{"heads", settings.heads, 1},         {"kv_heads", settings.kv_heads, 1},
                   {"head_dim", settings.head_dim, 1},   {"value_dim", settings.value_dim, 0},
                   {"sequences", settings.sequences, 1}, {"capacity", settings.capacity, 1},
                   {"page_size", settings.page_size, 0}, {"pages", settings.pages, settings.page_size > 0 ? 1 : 0}};
    for (const auto& number : numbers)
        if (number.value < number.least || number.value >= most)
            return needs(number.name, number.value, std::to_string(number.least) + " to " + std::to_string(most - 1));
    const std::optional<DType> storage = storage_type(settings.storage), precision = storage_type(settings.precision);
    if (!storage)
        return Error{ErrorCode::option,
                     "kv-cache: storage is \"" + settings.storage + "\"; accepted: fp32, fp16, bf16, int8", ""};
    if (!precision || precision == DType::i8)
        return Error{ErrorCode::option,
                     "kv-cache: precision is \"" + settings.precision + "\"; accepted: fp32, fp16, bf16", ""};
    CallRequest request;
    request.options = settings.options;
    request.types = {*precision, *precision};
    const Result<CallForm> form = choose_form(**mechanism, nullptr, request);
    if (!form) return form.error();
    state->heads = settings.heads;
    state->kv_heads = settings.kv_heads;
    state->head_dim = settings.head_dim;
    state->value_dim = settings.value_dim > 0 ? settings.value_dim : settings.head_dim;
    state->sequences = settings.sequences;
    state->storage = *storage;
    state->precision = *precision;
    state->workers = service.threads();
    attend_kv_cache_desc desc{};
    desc.struct_size = sizeof desc;
    desc.dtype = static_cast<std::uint32_t>(find_dtype(*storage)->bit);
    desc.num_sequences = settings.sequences;
    desc.capacity = settings.capacity;
    desc.page_keys = settings.page_size;
    desc.num_pages = settings.page_size > 0 ? settings.pages : 0;
    Result<attend_kv_cache*> made =
        StepDescription(*mechanism, request, *form).create(*state->functions, settings, desc, state->workers);
    if (!made) return made.error();
    state->cache = *made;
    return KvCache(std::move(state));
}

Result<void> KvCache::append(const std::vector<std::int64_t>& sequences, const Tensor& key, const Tensor& value) {
    const Result<Tensor> keys =
        state_->checked(key, "key", sequences.size(), state_->kv_heads, state_->head_dim, state_->storage);
    if (!keys) return keys.error();
    const Result<Tensor> values =
        state_->checked(value, "value", sequences.size(), state_->kv_heads, state_->value_dim, state_->storage);
    if (!values) return values.error();
    if (keys->shape[2] != values->shape[2])
        return state_->fail(ErrorCode::shape, "key has " + std::to_string(keys->shape[2]) + " rows, value " +
                                                  std::to_string(values->shape[2]) + "; accepted: the same number");
    CallTensor described[2];
    described[0].describe(keys->shape, keys->strides, keys->dtype, keys->data);
    described[1].describe(values->shape, values->strides, values->dtype, values->data);
    ErrorText failure;
    return state_->done(
        state_->functions->append(state_->cache, sequences.data(), static_cast<std::int64_t>(sequences.size()),
                                  &described[0].tensor, &described[1].tensor, &failure.error),
        failure);
}

Result<void> KvCache::truncate(std::int64_t sequence, std::int64_t length) {
    ErrorText failure;
    return state_->done(state_->functions->truncate(state_->cache, sequence, length, &failure.error), failure);
}

Result<void> KvCache::fork(std::int64_t from, std::int64_t to) {
    ErrorText failure;
    return state_->done(state_->functions->fork(state_->cache, from, to, &failure.error), failure);
}

Result<std::int64_t> KvCache::length(std::int64_t sequence) const {
    const std::int64_t length = state_->functions->length(state_->cache, sequence);
    if (length >= 0) return length;
    return state_->fail(ErrorCode::input, "sequence " + std::to_string(sequence) +
                                              " is not in the cache; accepted: 0 to " +
                                              std::to_string(state_->sequences - 1));
}

KvCacheFacts KvCache::facts() const {
    attend_kv_cache_info info{};
    info.struct_size = sizeof info;
    state_->functions->info(state_->cache, &info);
    return {info.bytes, info.used_bytes, info.num_pages, info.free_pages};
}

Result<KvStep> KvCache::step(const std::vector<std::int64_t>& sequences, const Tensor& given, bool lse) const {
    const State& state = *state_;
    Result<Tensor> query =
        state.checked(given, "query", sequences.size(), state.heads, state.head_dim, state.precision);
    if (!query) return query.error();
    if (query->dtype != state.precision) query = convert(*query, state.precision);
    if (!query) return query.error();
    const std::int64_t count = query->shape[0], rows = query->shape[2];
    KvStep result;
    Result<Tensor> output =
        Tensor::allocate(state.precision, {count, state.heads, rows, state.value_dim}, Tensor::Fill::none);
    if (!output) return output.error();
    result.output = std::move(*output);
    if (lse) {
        Result<Tensor> sums = Tensor::allocate(DType::f32, {count, state.heads, rows}, Tensor::Fill::none);
        if (!sums) return sums.error();
        result.lse = std::move(*sums);
    }
    if (result.output.size() == 0) return result;
    CallTensor tensors[3];
    tensors[0].describe(query->shape, query->strides, query->dtype, query->data);
    tensors[1].describe(result.output.shape, result.output.strides, result.output.dtype, result.output.data);
    if (lse) tensors[2].describe(result.lse->shape, result.lse->strides, result.lse->dtype, result.lse->data);
    const attend_binding bindings[3] = {{sizeof(attend_binding), ATTEND_Q, "query", &tensors[0].tensor},
                                        {sizeof(attend_binding), ATTEND_OUT, "output", &tensors[1].tensor},
                                        {sizeof(attend_binding), ATTEND_LSE, "lse", &tensors[2].tensor}};
    attend_call call;
    call.max_workers = state.workers;
    attend_exec exec{};
    exec.struct_size = sizeof exec;
    exec.bindings = {bindings, lse ? 3u : 2u, sizeof(attend_binding)};
    exec.workspace_bytes = state.functions->step_workspace(state.cache, count, rows);
    exec.workspace = thread_workspace(exec.workspace_bytes, 64);
    exec.call = &call;
    if (exec.workspace_bytes != 0 && exec.workspace == nullptr)
        return state.fail(ErrorCode::memory,
                          "no memory for a workspace of " + std::to_string(exec.workspace_bytes) + " bytes");
    ErrorText failure;
    const attend_status status = state.functions->step(state.cache, sequences.data(), count, &exec, &failure.error);
    if (status != ATTEND_OK) return plugin_error(*state.mechanism, status, failure.text.data());
    return result;
}

}  // namespace attend
