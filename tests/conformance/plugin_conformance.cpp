// SPDX-License-Identifier: Apache-2.0
#include "plugin_conformance.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "test_call.hpp"

namespace conformance {
namespace {

// Runs `what` for every mechanism of the plugin.
void for_each_call(
    const std::string& path, Findings& findings,
    const std::function<void(Opened&, const Call&, const std::function<void(const std::string&)>&)>& what,
    TestHost::Loop loop = TestHost::Loop::serial, TestHost::Table kind = TestHost::Table::current) {
    Opened plugin(path, findings, loop, kind);
    if (plugin.lib == nullptr) return;
    const std::uint32_t count = plugin.table->mechanism_count(plugin.lib);
    for (std::uint32_t index = 0; index < count; ++index) {
        const Call call(plugin, index, findings);
        if (call.good())
            what(plugin, call, [&](const std::string& text) { findings.push_back(call.name() + ": " + text); });
    }
}

std::string status_text(attend_status got, attend_status wanted) {
    return "status " + std::to_string(got) + "; accepted: " + std::to_string(wanted);
}

void entry_is_pure(const std::string& path, Findings& findings) {
    const attend_entry_fn entry = entry_of(path, findings);
    if (entry == nullptr) return;
    const attend_hello hello = hello_of(ATTEND_ABI_MAJOR, ATTEND_ABI_MINOR);
    const attend_plugin *first = entry(&hello), *second = entry(&hello);
    if (first == nullptr || first != second) findings.push_back("the entry gave different tables, or none");
    for (const attend_hello& other :
         {hello_of(ATTEND_ABI_MAJOR, 0), hello_of(ATTEND_ABI_MAJOR, 65535), hello_of(ATTEND_ABI_MAJOR, 0, 24)})
        if (entry(&other) == nullptr)
            findings.push_back("no table for minor " + std::to_string(other.abi_minor) + ", hello of " +
                               std::to_string(other.struct_size) + " bytes");
}

void wrong_major(const std::string& path, Findings& findings) {
    const attend_entry_fn entry = entry_of(path, findings);
    if (entry == nullptr) return;
    for (const std::uint16_t major : {std::uint16_t{0}, std::uint16_t{2}, std::uint16_t{65535}}) {
        const attend_hello hello = hello_of(major, 0);
        const attend_plugin* table = entry(&hello);
        if (table == nullptr) continue;  // a refusal is allowed
        if (table->magic != ATTEND_MAGIC || table->struct_size < 40 || table->id == nullptr ||
            table->version == nullptr || table->abi_major != ATTEND_ABI_MAJOR)
            findings.push_back("the frozen prefix is not right for a host of ABI " + std::to_string(major));
    }
}

void opens_twice(const std::string& path, Findings& findings) {
    Opened first(path, findings), second(path, findings);
    if (first.lib == nullptr || second.lib == nullptr) return;
    if (first.lib == second.lib) findings.push_back("both opens gave the same library");
    const std::uint32_t count = first.table->mechanism_count(first.lib);
    if (second.table->mechanism_count(second.lib) != count)
        findings.push_back("the opens list different numbers of mechanisms");
    if (first.table->mechanism_at(first.lib, count) != nullptr)
        findings.push_back("mechanism_at past the end is not NULL");
    for (std::uint32_t at = 0; at < count; ++at) {
        const attend_mechanism* mechanism = first.table->mechanism_at(first.lib, at);
        if (mechanism != first.table->mechanism_at(first.lib, at))
            findings.push_back("mechanism_at gives different descriptions");
        if (std::string(mechanism->name) != second.table->mechanism_at(second.lib, at)->name)
            findings.push_back("the opens list different mechanisms");
    }
    first.close();  // the second one goes on
    const Call call(second, 0, findings);
    if (call.good() && call.execute(call.plan()).status != ATTEND_OK)
        findings.push_back("the second library failed after the first was closed");
}

void open_without_memory(const std::string& path, Findings& findings) {
    const attend_plugin* table = table_of(path, findings);
    if (table == nullptr) return;
    for (std::int64_t successes = 0; successes < 64; ++successes) {
        TestHost host;
        host.fail_after(successes);
        attend_lib* lib = nullptr;
        ErrorText text;
        const attend_status status = table->open(host.table(), &lib, &text.error);
        if (status == ATTEND_OK) {
            host.fail_after(-1);
            table->close(lib);
            if (successes == 0 && host.allocations() > 0) findings.push_back("open succeeded without memory");
            return;
        }
        if (status != ATTEND_OUT_OF_MEMORY) findings.push_back("open: " + status_text(status, ATTEND_OUT_OF_MEMORY));
        if (host.blocks() != 0)
            findings.push_back("open left memory behind when allocation " + std::to_string(successes) + " failed");
    }
}

void plan_without_execute(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const std::size_t before = plugin.host.blocks();
        for (int round = 0; round < 3; ++round) {
            ErrorText text;
            attend_plan* plan = nullptr;
            if (const attend_status status = call.make(&plan, text); status != ATTEND_OK)
                return report("plan: " + status_text(status, ATTEND_OK) + ": " + text.text.data());
            call.functions->plan_destroy(plan);
        }
        if (plugin.host.blocks() != before) report("plan and plan_destroy leave memory behind");
        if (!plugin.host.misuse().empty()) report(plugin.host.misuse());
    });
}

void plan_without_memory(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const std::size_t before = plugin.host.blocks();
        for (std::int64_t successes = 0; successes < 256; ++successes) {
            ErrorText text;
            attend_plan* plan = nullptr;
            plugin.host.fail_after(successes);
            const attend_status status = call.make(&plan, text);
            plugin.host.fail_after(-1);
            if (status == ATTEND_OK) return call.functions->plan_destroy(plan);
            if (status != ATTEND_OUT_OF_MEMORY)
                report("allocation " + std::to_string(successes) +
                       " failed: " + status_text(status, ATTEND_OUT_OF_MEMORY));
            if (plan != nullptr) report("a plan was handed out with an error");
            if (plugin.host.blocks() != before)
                report("memory left behind when allocation " + std::to_string(successes) + " failed");
        }
        report("plan never succeeded");
    });
}

void plan_info_size(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        for (const std::uint32_t size : {std::uint32_t{8}, std::uint32_t{24}, std::uint32_t{sizeof(attend_plan_info)},
                                         std::uint32_t{sizeof(attend_plan_info) + 40}}) {
            alignas(8) std::array<std::byte, 256> memory;
            memory.fill(guard);
            auto* info = reinterpret_cast<attend_plan_info*>(memory.data());
            info->struct_size = size;
            const attend_status status = call.functions->plan_info(call.plan(), info);
            if (size >= sizeof(attend_plan_info) && status != ATTEND_OK)
                report("plan_info of " + std::to_string(size) + " bytes: " + status_text(status, ATTEND_OK));
            if (std::any_of(memory.begin() + size, memory.end(), [](std::byte b) { return b != guard; }))
                report("plan_info wrote past a struct of " + std::to_string(size) + " bytes");
            if (status == ATTEND_OK && info->struct_size != size)
                report("plan_info changed struct_size, which the host sets");
        }
    });
}

void required_block(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        const attend_ext required{sizeof(attend_ext), ATTEND_EXT_REQUIRED, "org.nobody.unknown/1", nullptr};
        const attend_ext optional{sizeof(attend_ext), 0, "org.nobody.unknown/1", nullptr},
            second{sizeof(attend_ext), 0, "org.nobody.other/1", &required};
        attend_plan* plan = nullptr;
        for (const attend_ext* block : {&required, &second}) {
            ErrorText text;
            const attend_status status = call.make(&plan, text, block);
            if (status != ATTEND_UNSUPPORTED)
                report("plan with an unknown REQUIRED block: " + status_text(status, ATTEND_UNSUPPORTED));
            if (status == ATTEND_OK) call.functions->plan_destroy(plan);
            if (call.check(block) != ATTEND_UNSUPPORTED)
                report("check with an unknown REQUIRED block does not say UNSUPPORTED");
        }
        ErrorText text;
        if (call.make(&plan, text, &optional) != ATTEND_OK) return report("plan refused an unknown optional block");
        call.functions->plan_destroy(plan);
    });
}

void unknown_extensions(const std::string& path, Findings& findings) {
    constexpr const char* ids[] = {
        "", "attend.cost", "attend.cost/", "attend.cost/1x", "attend.cost/10", "attend.tolerance/1 ", "org.nobody/1",
        "/"};
    for_each_call(path, findings, [&](Opened& plugin, const Call& call, const auto& report) {
        for (const char* id : ids) {
            if (call.functions->get_extension != nullptr && call.functions->get_extension(plugin.lib, id) != nullptr)
                report("knows the extension \"" + std::string(id) + "\"");
            if (plugin.table->get_extension != nullptr && plugin.table->get_extension(plugin.lib, id) != nullptr)
                report("the plugin knows the extension \"" + std::string(id) + "\"");
        }
    });
}

void short_workspace(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        if (call.workspace_bytes() == 0) return;
        for (const std::uint64_t missing : {std::uint64_t{1}, call.workspace_bytes()})
            if (const auto result = call.execute(call.plan(), std::byte{0}, missing);
                result.status != ATTEND_WORKSPACE_TOO_SMALL || !result.guards_intact)
                report(std::to_string(missing) +
                       " bytes missing: " + status_text(result.status, ATTEND_WORKSPACE_TOO_SMALL));
    });
}

void poisoned_workspace(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        const auto zeros = call.execute(call.plan()),
                   nans = call.execute(call.plan(), std::byte{0xFF});  // all ones: NaN in every float type
        if (zeros.status != ATTEND_OK || nans.status != ATTEND_OK)
            return report(status_text(zeros.status, ATTEND_OK) + ": " + zeros.text);
        if (zeros.outputs != nans.outputs) report("the result depends on what the workspace held before");
    });
}

void execute_allocates_nothing(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const std::uint64_t before = plugin.host.allocations();
        if (const auto result = call.execute(call.plan()); result.status != ATTEND_OK)
            report(status_text(result.status, ATTEND_OK) + ": " + result.text);
        if (plugin.host.allocations() != before)
            report("execute took " + std::to_string(plugin.host.allocations() - before) + " blocks from the host");
    });
}

void guards_stay_intact(const std::string& path, Findings& findings) {
    for (const TestHost::Loop loop : {TestHost::Loop::serial, TestHost::Loop::threads})
        for_each_call(
            path, findings,
            [](Opened&, const Call& call, const auto& report) {
                const auto before = call.input_bytes();
                if (!call.execute(call.plan()).guards_intact) report("wrote outside its outputs or workspace");
                if (call.input_bytes() != before) report("wrote to an input");
            },
            loop);
}

void loops_agree(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        const auto serial = call.execute(call.plan());
        plugin.host.set_loop(TestHost::Loop::threads);
        for (int round = 0; round < 3; ++round)
            if (call.execute(call.plan()).outputs != serial.outputs)
                report("the result depends on the number of workers");
        plugin.host.set_loop(TestHost::Loop::serial);
    });
}

void threads_share_a_plan(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened&, const Call& call, const auto& report) {
        const auto alone = call.execute(call.plan());
        std::array<Call::Result, 4> results;
        std::vector<std::thread> threads;
        for (Call::Result& result : results)
            threads.emplace_back([&call, &result] {
                for (int round = 0; round < 8; ++round) result = call.execute(call.plan(), std::byte{0xFF});
            });
        for (std::thread& thread : threads) thread.join();
        for (const Call::Result& result : results)
            if (result.status != ATTEND_OK || result.outputs != alone.outputs || !result.guards_intact)
                report("one plan on four threads: results differ");
    });
}

void loop_status_is_returned(const std::string& path, Findings& findings) {
    for_each_call(path, findings, [](Opened& plugin, const Call& call, const auto& report) {
        plugin.host.set_loop(TestHost::Loop::refused);
        const std::uint64_t before = plugin.host.loops();
        const auto result = call.execute(call.plan());
        if (plugin.host.loops() != before && result.status != ATTEND_CANCELLED)
            report("a cancelled loop: " + status_text(result.status, ATTEND_CANCELLED));
        plugin.host.set_loop(TestHost::Loop::serial);
    });
}

void other_host(const std::string& path, Findings& findings, TestHost::Table kind) {
    std::vector<std::vector<Bytes>> expected;
    for_each_call(path, findings, [&](Opened&, const Call& call, const auto&) {
        expected.push_back(call.execute(call.plan()).outputs);
    });
    std::size_t at = 0;
    for_each_call(
        path, findings,
        [&](Opened&, const Call& call, const auto& report) {
            const auto result = call.execute(call.plan());
            if (result.status != ATTEND_OK || at >= expected.size() || result.outputs != expected[at])
                report("another result with another host table");
            ++at;
        },
        TestHost::Loop::serial, kind);
}
void old_host(const std::string& path, Findings& findings) { other_host(path, findings, TestHost::Table::old); }
void future_host(const std::string& path, Findings& findings) { other_host(path, findings, TestHost::Table::future); }

// The rows [first, first + count) of whole scores, [heads of all items, rows, keys].
Bytes window_of(const Bytes& whole, const std::vector<std::int64_t>& shape, std::int64_t first, std::int64_t count) {
    const std::int64_t rows = shape[shape.size() - 2], row = shape.back() * static_cast<std::int64_t>(sizeof(float));
    Bytes part;
    for (std::int64_t head = 0; (head + 1) * rows * row <= static_cast<std::int64_t>(whole.size()); ++head)
        part.insert(part.end(), whole.begin() + (head * rows + first) * row,
                    whole.begin() + (head * rows + first + count) * row);
    return part;
}

void score_rows(const std::string& path, Findings& findings) {
    Opened plugin(path, findings);
    if (plugin.lib == nullptr) return;
    for (std::uint32_t index = 0; index < plugin.table->mechanism_count(plugin.lib); ++index) {
        const Call call(plugin, index, findings, true);
        if (!call.good() || call.scores_at() < 0 || call.functions->get_extension == nullptr) continue;
        const auto* extension =
            static_cast<const attend_scores_extension*>(call.functions->get_extension(plugin.lib, ATTEND_EXT_SCORES));
        if (extension == nullptr) continue;
        const auto report = [&](const std::string& text) { findings.push_back(call.name() + ": " + text); };
        const std::vector<std::int64_t>& shape = call.scores_shape();
        const std::int64_t rows = shape[shape.size() - 2];
        const auto whole = call.execute(call.plan());
        if (whole.status != ATTEND_OK) {
            report(status_text(whole.status, ATTEND_OK) + ": " + whole.text);
            continue;
        }
        const Bytes& all = whole.outputs[static_cast<std::size_t>(call.scores_at())];
        bool intact = true, same = true;
        for (const std::int64_t count : {std::int64_t{1}, std::min<std::int64_t>(7, rows), rows})
            for (std::int64_t first = 0; first + count <= rows; ++first) {
                const auto got = call.rows(extension->rows, first, count);
                if (got.status != ATTEND_OK) report(status_text(got.status, ATTEND_OK) + ": " + got.text);
                intact = intact && got.guards_intact;
                same = same && got.outputs[0] == window_of(all, shape, first, count);
                if (extension->logits != nullptr)
                    intact = intact && call.rows(extension->logits, first, count).guards_intact;
            }
        if (!intact) report("rows of scores wrote outside their buffer");
        if (!same) report("rows of scores differ from those of the whole call");
        const std::pair<std::int64_t, std::int64_t> wrong[] = {
            {-1, 1}, {0, 0}, {rows, 1}, {0, rows + 1}, {rows - 1, 2}};
        for (const auto& [first, count] : wrong)
            if (const auto got = call.rows(extension->rows, first, count); got.status != ATTEND_INVALID_ARGUMENT)
                report("rows " + std::to_string(first) + " and " + std::to_string(count) + " of " +
                       std::to_string(rows) + ": " + status_text(got.status, ATTEND_INVALID_ARGUMENT));
    }
}

constexpr Check all_checks[] = {
    {"entry-is-pure", "the entry may be called twice, with any minor and a shorter hello", entry_is_pure},
    {"wrong-major", "the frozen prefix is right for a host of any major", wrong_major},
    {"opens-twice", "two libraries live side by side", opens_twice},
    {"open-without-memory", "open reports OUT_OF_MEMORY and leaves nothing behind", open_without_memory},
    {"plan-without-execute", "plan and plan_destroy leave nothing behind", plan_without_execute},
    {"plan-without-memory", "plan reports OUT_OF_MEMORY at every allocation and leaves nothing behind",
     plan_without_memory},
    {"plan-info-size", "plan_info writes no more than struct_size", plan_info_size},
    {"required-block", "an unknown REQUIRED block is UNSUPPORTED, an optional one is ignored", required_block},
    {"unknown-extensions", "unknown extension ids give NULL", unknown_extensions},
    {"short-workspace", "a workspace that is too small is refused", short_workspace},
    {"poisoned-workspace", "the workspace is uninitialised on entry", poisoned_workspace},
    {"execute-allocates-nothing", "execute takes no memory from the host", execute_allocates_nothing},
    {"guards-stay-intact", "nothing is written outside outputs and workspace", guards_stay_intact},
    {"loops-agree", "same bits for any number of workers", loops_agree},
    {"threads-share-a-plan", "a plan runs on several threads at once", threads_share_a_plan},
    {"loop-status-is-returned", "the status of a loop is the status of the call", loop_status_is_returned},
    {"score-rows", "rows of scores are those of the whole call, to the bit, and nothing else is written", score_rows},
    {"old-host", "a table cut to ABI 1.0 is enough", old_host},
    {"future-host", "a longer table with a higher minor changes nothing", future_host},
};

}  // namespace

std::span<const Check> checks() { return all_checks; }

Findings run_check(const std::string& path, const std::string& id) {
    Findings findings;
    const auto found =
        std::find_if(std::begin(all_checks), std::end(all_checks), [&](const Check& check) { return id == check.id; });
    if (found == std::end(all_checks)) return {"no check is called \"" + id + "\""};
    found->run(path, findings);
    return findings;
}

}  // namespace conformance
