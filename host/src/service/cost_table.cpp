// SPDX-License-Identifier: Apache-2.0
#include "attend/cost_table.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <map>

#include "attend/attention_service.hpp"
#include "attend/config/names.hpp"
#include "io/mapped_file.hpp"
#include "loading/plugin_loader.hpp"
#include "plugin_services/cpu.hpp"

namespace attend {
namespace {

constexpr std::int64_t table_version = 1;

// Positions along one axis: the measured values around a wanted one, and how far between them it lies.
struct Between {
    double low{}, high{}, share{};
};

Between between(std::vector<double> values, double wanted) {
    std::sort(values.begin(), values.end());
    if (wanted <= values.front()) return {values.front(), values.front(), 0};
    if (wanted >= values.back()) return {values.back(), values.back(), 0};
    const auto above = std::upper_bound(values.begin(), values.end(), wanted);
    const double low = *(above - 1), high = *above;
    return {low, high, (std::log(wanted) - std::log(low)) / (std::log(high) - std::log(low))};
}

// The logarithm of operations per millisecond, between the measured shapes.
double log_rate(const std::vector<const CostSample*>& samples, const CostPoint& point) {
    std::vector<double> heads, lengths, dims;
    for (const CostSample* sample : samples) {
        heads.push_back(sample->point.heads);
        lengths.push_back(sample->point.length);
        dims.push_back(sample->point.head_dim);
    }
    const std::array<Between, 3> axes{between(heads, point.heads), between(lengths, point.length),
                                      between(dims, point.head_dim)};
    // The corners of the cell around the point. One that was not measured, because it takes too long, counts as the
    // measured sample nearest to it.
    double logarithm = 0;
    for (unsigned corner = 0; corner < 8; ++corner) {
        std::array<double, 3> at{};
        double weight = 1;
        for (unsigned axis = 0; axis < 3; ++axis) {
            const bool high = (corner >> axis & 1u) != 0;
            at[axis] = high ? axes[axis].high : axes[axis].low;
            weight *= high ? axes[axis].share : 1 - axes[axis].share;
        }
        if (weight <= 0) continue;
        const auto distance = [&at](const CostSample* sample) {
            // Longer and wider matter more than more heads.
            return std::abs(std::log(sample->point.heads / at[0])) * 0.5 +
                   std::abs(std::log(sample->point.length / at[1])) +
                   std::abs(std::log(sample->point.head_dim / at[2]));
        };
        const CostSample* nearest =
            *std::min_element(samples.begin(), samples.end(),
                              [&](const CostSample* a, const CostSample* b) { return distance(a) < distance(b); });
        logarithm += weight * std::log(nearest->flops / nearest->ms);
    }
    return logarithm;
}

Json sample_json(const CostSample& sample) {
    return Json::object()
        .set("heads", sample.point.heads)
        .set("length", sample.point.length)
        .set("head_dim", sample.point.head_dim)
        .set("causal", sample.point.causal)
        .set("flops", sample.flops)
        .set("bytes", sample.bytes)
        .set("ms", sample.ms);
}

// Members by name, each problem named once.
class Reader {
public:
    Reader(const Json& json, std::string place) : json_(json), place_(std::move(place)) {}

    const Json* member(const char* name, bool (Json::*is)() const noexcept, const char* accepted) {
        const Json* found = json_.find(name);
        if (found != nullptr && (found->*is)()) return found;
        fail(name, found == nullptr ? "is missing" : std::string("is ") + found->kind(), accepted);
        return nullptr;
    }
    std::string text(const char* name) {
        const Json* found = member(name, &Json::is_string, "text");
        return found == nullptr ? "" : found->as_string();
    }
    double number(const char* name) {
        const Json* found = member(name, &Json::is_number, "a number above 0");
        if (found == nullptr) return 1;
        const double value = found->as_double();
        if (std::isfinite(value) && value > 0) return value;
        fail(name, "is " + write_json(*found), "a finite number above 0");
        return 1;
    }
    void fail(const std::string& name, const std::string& what, const std::string& accepted) {
        if (!error_)
            error_ = Error{ErrorCode::input, place_ + ": " + name + " " + what + "; accepted: " + accepted, ""};
    }
    [[nodiscard]] const std::optional<Error>& error() const { return error_; }

private:
    const Json& json_;
    std::string place_;
    std::optional<Error> error_;
};

}  // namespace

std::string CostKeys::difference(const CostKeys& now) const {
    const auto differs = [](const char* what, const std::string& was, const std::string& is) {
        return std::string(what) + " is " + is + ", the table is for " + was;
    };
    if (cpu != now.cpu) return differs("the CPU", cpu, now.cpu);
    if (isa != now.isa) return differs("the instruction set", isa, now.isa);
    if (version != now.version) return differs("the version", version, now.version);
    if (commit != now.commit) return differs("the commit", commit, now.commit);
    // A plugin that was not there then has no rates; one that was must be the same.
    for (const auto& [id, was] : plugins) {
        const auto found =
            std::find_if(now.plugins.begin(), now.plugins.end(), [&](const auto& entry) { return entry.first == id; });
        if (found != now.plugins.end() && found->second != was)
            return differs(("plugin " + id).c_str(), was, found->second);
    }
    return "";
}

CostKeys cost_keys(const AttentionService& service, std::string version, std::string commit) {
    CostKeys keys{service.cpu().model, isa_names(service.isa()), std::move(version), std::move(commit), {}};
    for (const PluginReport& report : service.plugin_reports())
        if (report.loaded) keys.plugins.emplace_back(report.id, report.version);
    std::sort(keys.plugins.begin(), keys.plugins.end());
    return keys;
}

CostTable::CostTable(CostKeys keys, std::vector<MechanismCosts> mechanisms)
    : keys_(std::move(keys)), mechanisms_(std::move(mechanisms)) {}

Json CostTable::json() const {
    Json plugins = Json::array(), mechanisms = Json::array();
    for (const auto& [id, version] : keys_.plugins) plugins.push(Json::object().set("id", id).set("version", version));
    for (const MechanismCosts& costs : mechanisms_) {
        Json samples = Json::array();
        for (const CostSample& sample : costs.samples) samples.push(sample_json(sample));
        mechanisms.push(Json::object()
                            .set("mechanism", costs.mechanism)
                            .set("threads", costs.threads)
                            .set("samples", std::move(samples)));
    }
    return Json::object()
        .set("version", table_version)
        .set("cpu", keys_.cpu)
        .set("isa", keys_.isa)
        .set("build", Json::object().set("version", keys_.version).set("commit", keys_.commit))
        .set("plugins", std::move(plugins))
        .set("mechanisms", std::move(mechanisms));
}

Result<CostTable> CostTable::parse(std::string_view text, const std::string& place) {
    const Result<Json> json = parse_json(text, place);
    if (!json) return json.error();
    Reader top(*json, place);
    if (!json->is_object())
        return Error{ErrorCode::input, place + ": is " + json->kind() + "; accepted: an object", ""};
    if (const double version = top.number("version"); !top.error() && version != static_cast<double>(table_version))
        top.fail("version", "is " + write_json(*json->find("version")), std::to_string(table_version));
    CostTable table;
    table.keys_.cpu = top.text("cpu");
    table.keys_.isa = top.text("isa");
    if (const Json* build = top.member("build", &Json::is_object, "an object")) {
        Reader reader(*build, place + ": build");
        table.keys_.version = reader.text("version");
        table.keys_.commit = reader.text("commit");
        if (reader.error()) return *reader.error();
    }
    const Json *plugins = top.member("plugins", &Json::is_array, "a list"),
               *mechanisms = top.member("mechanisms", &Json::is_array, "a list");
    if (top.error()) return *top.error();
    for (std::size_t at = 0; at < plugins->size(); ++at) {
        Reader reader(plugins->as_array()[at], place + ": plugins[" + std::to_string(at) + "]");
        table.keys_.plugins.emplace_back(reader.text("id"), reader.text("version"));
        if (reader.error()) return *reader.error();
    }
    for (std::size_t at = 0; at < mechanisms->size(); ++at) {
        const std::string where = place + ": mechanisms[" + std::to_string(at) + "]";
        Reader reader(mechanisms->as_array()[at], where);
        MechanismCosts costs;
        costs.mechanism = reader.text("mechanism");
        const double threads = reader.number("threads");
        if (threads > 65535 || std::trunc(threads) != threads) reader.fail("threads", "is not whole", "1 to 65535");
        const Json* samples = reader.member("samples", &Json::is_array, "a list");
        if (samples != nullptr && samples->size() == 0) reader.fail("samples", "are none", "at least one");
        if (reader.error()) return *reader.error();
        costs.threads = static_cast<std::uint32_t>(threads);
        for (std::size_t index = 0; index < samples->size(); ++index) {
            Reader one(samples->as_array()[index], where + ".samples[" + std::to_string(index) + "]");
            const Json* causal = one.member("causal", &Json::is_bool, "true or false");
            CostSample sample{{one.number("heads"), one.number("length"), one.number("head_dim"),
                               causal != nullptr && causal->as_bool()},
                              one.number("flops"),
                              one.number("bytes"),
                              one.number("ms")};
            if (one.error()) return *one.error();
            costs.samples.push_back(sample);
        }
        table.mechanisms_.push_back(std::move(costs));
    }
    return table;
}

Result<CostTable> CostTable::load(const std::string& path) {
    const Result<io::MappedFile> file = io::map_file(path);
    if (!file) return file.error();
    return parse({reinterpret_cast<const char*>(file->bytes.data()), file->bytes.size()}, path);
}

const MechanismCosts* CostTable::find(std::string_view mechanism, std::uint32_t threads) const {
    const MechanismCosts* best = nullptr;
    const auto far = [threads](const MechanismCosts& costs) {
        return std::abs(std::log(static_cast<double>(costs.threads) / static_cast<double>(std::max(threads, 1u))));
    };
    for (const MechanismCosts& costs : mechanisms_)
        if (costs.mechanism == mechanism && !costs.samples.empty() && (best == nullptr || far(costs) < far(*best)))
            best = &costs;
    return best;
}

std::optional<double> CostTable::predict(std::string_view mechanism, std::uint32_t threads, const CostPoint& point,
                                         double flops, double bytes) const {
    const MechanismCosts* costs = find(mechanism, threads);
    if (costs == nullptr || !(flops > 0) || !std::isfinite(flops)) return std::nullopt;
    std::vector<const CostSample*> plain, causal;
    double rate_bytes = 0;
    for (const CostSample& sample : costs->samples) {
        (sample.point.causal ? causal : plain).push_back(&sample);
        rate_bytes = std::max(rate_bytes, sample.bytes / sample.ms);
    }
    if (plain.empty()) plain.swap(causal);
    double logarithm = log_rate(plain, point);
    // What tiles along the diagonal waste, by the length; measured for one number of heads and one width.
    if (point.causal && !causal.empty()) {
        CostPoint place = point;
        place.heads = causal.front()->point.heads;
        place.head_dim = causal.front()->point.head_dim;
        logarithm += log_rate(causal, place) - log_rate(plain, place);
    }
    const double by_flops = flops / std::exp(logarithm), by_bytes = rate_bytes > 0 ? bytes / rate_bytes : 0;
    return std::max(by_flops, by_bytes);
}

}  // namespace attend
