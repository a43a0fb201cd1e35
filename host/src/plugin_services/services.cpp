// SPDX-License-Identifier: Apache-2.0
#include "plugin_services/services.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>

#include "plugin_services/log.hpp"

namespace attend {
namespace {

constexpr std::uint64_t least_alignment = 64;
constexpr std::uint64_t log_lines_per_second = 100;
constexpr std::uint64_t huge_page = std::uint64_t{2} << 20, huge_block = std::uint64_t{16} << 20;

PluginServices* self(const attend_host* host) { return static_cast<PluginServices*>(host->impl); }

std::uint64_t block_alignment(std::uint64_t align) { return std::max(align, least_alignment); }

}  // namespace

PluginServices::PluginServices(std::shared_ptr<const Machine> machine, std::string plugin_id,
                               std::map<std::string, std::string> settings)
    : machine_(std::move(machine)), plugin_id_(std::move(plugin_id)), settings_(std::move(settings)) {
    const CpuFacts& facts = machine_->facts;
    cpu_.struct_size = sizeof cpu_;
    cpu_.arch = facts.arch;
    cpu_.isa = machine_->isa;
    cpu_.isa_machine = facts.isa_machine;
    cpu_.l1d_bytes = facts.l1d_bytes;
    cpu_.l2_bytes = facts.l2_bytes;
    cpu_.l3_bytes = facts.l3_bytes;
    cpu_.cache_line = facts.cache_line;
    cpu_.cores = facts.cores;
    cpu_.threads = facts.threads;
    cpu_.vendor = facts.vendor.c_str();
    cpu_.model = facts.model.c_str();
    table_.struct_size = sizeof table_;
    table_.abi_major = ATTEND_ABI_MAJOR;
    table_.abi_minor = ATTEND_ABI_MINOR;
    table_.impl = this;
    table_.cpu = &cpu_;
    table_.alloc = alloc;
    table_.release = release;
    table_.parallel_for = parallel_for;
    table_.max_workers = max_workers;
    table_.log_level = host_log_level;
    table_.log = log;
    table_.cancelled = cancelled;
    table_.progress = progress;
    table_.now_ns = now_ns;
    table_.setting = setting;
    table_.get_extension = get_extension;
}

void* PluginServices::alloc(const attend_host* host, std::uint64_t bytes, std::uint64_t align) {
    // Large blocks, a cache of keys for one, ask for huge pages: reading them then misses the page tables far less often.
    const bool large = bytes >= huge_block;
    const std::uint64_t alignment = std::max(block_alignment(align), large ? huge_page : std::uint64_t{0});
    if ((alignment & (alignment - 1)) != 0 || bytes > (std::uint64_t{1} << 62)) return nullptr;
    const std::uint64_t rounded = std::max<std::uint64_t>(alignment, (bytes + alignment - 1) / alignment * alignment);
    void* p = std::aligned_alloc(alignment, rounded);
    if (p == nullptr) return nullptr;
    if (large) ::madvise(p, rounded / huge_page * huge_page, MADV_HUGEPAGE);  // a wish: refusal changes nothing
    self(host)->bytes_in_use_ += bytes;
    ++self(host)->blocks_in_use_;
    ++self(host)->allocations_;
    return p;
}

void PluginServices::release(const attend_host* host, void* p, std::uint64_t bytes, std::uint64_t) {
    if (p == nullptr) return;
    self(host)->bytes_in_use_ -= bytes;
    --self(host)->blocks_in_use_;
    std::free(p);
}

attend_status PluginServices::parallel_for(const attend_host* host, attend_call* call, std::uint64_t n,
                                           std::uint64_t grain, std::uint32_t flags, attend_range_fn body, void* user) {
    return self(host)->machine_->pool->run(call, n, grain, flags, body, user);
}

std::uint32_t PluginServices::max_workers(const attend_host* host) { return self(host)->machine_->pool->workers(); }
std::uint32_t PluginServices::host_log_level(const attend_host*) { return log_level(); }

void PluginServices::log(const attend_host* host, std::uint32_t level, const char* text) {
    PluginServices& services = *self(host);
    const std::uint64_t second = now_ns(host) / 1'000'000'000u;
    {
        const std::scoped_lock lock(services.log_mutex_);
        if (second != services.log_second_) {
            services.log_second_ = second;
            services.log_lines_ = 0;
        }
        if (++services.log_lines_ > log_lines_per_second) return;
    }
    log_line("plugin." + services.plugin_id_, level, text != nullptr ? text : "");
}

std::uint32_t PluginServices::cancelled(const attend_call* call) {
    return call != nullptr && call->is_cancelled() ? 1u : 0u;
}
void PluginServices::progress(attend_call* call, double fraction) {
    if (call != nullptr) call->progress = fraction;
}

std::uint64_t PluginServices::now_ns(const attend_host*) {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(since).count());
}

attend_status PluginServices::setting(const attend_host* host, const char* key, char* buf, std::uint64_t cap,
                                      std::uint64_t* needed) {
    if (key == nullptr || needed == nullptr) return ATTEND_INVALID_ARGUMENT;
    const auto& settings = self(host)->settings_;
    const auto found = settings.find(key);
    if (found == settings.end()) return ATTEND_NOT_FOUND;
    *needed = found->second.size() + 1;
    if (buf == nullptr || cap == 0) return ATTEND_OK;
    if (cap < *needed) return ATTEND_LIMIT;
    std::memcpy(buf, found->second.c_str(), *needed);
    return ATTEND_OK;
}

const void* PluginServices::get_extension(const attend_host*, const char*) { return nullptr; }

}  // namespace attend
