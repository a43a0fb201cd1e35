// SPDX-License-Identifier: Apache-2.0
#include "plugin_services/log.hpp"

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <string_view>

#include "attend/abi.h"

namespace attend {
namespace {

struct LevelName {
    std::string_view name;
    std::uint32_t level;
    spdlog::level::level_enum spdlog_level;
};
constexpr std::array level_names{LevelName{"trace", ATTEND_LOG_TRACE, spdlog::level::trace},
                                 LevelName{"debug", ATTEND_LOG_DEBUG, spdlog::level::debug},
                                 LevelName{"info", ATTEND_LOG_INFO, spdlog::level::info},
                                 LevelName{"warn", ATTEND_LOG_WARN, spdlog::level::warn},
                                 LevelName{"error", ATTEND_LOG_ERROR, spdlog::level::err},
                                 LevelName{"off", ATTEND_LOG_OFF, spdlog::level::off}};

std::atomic<std::uint32_t> current{ATTEND_LOG_WARN};

spdlog::logger& logger() {
    static spdlog::logger instance = [] {
        spdlog::logger made("attend", std::make_shared<spdlog::sinks::stderr_sink_mt>());
        made.set_level(spdlog::level::trace);
        made.set_pattern("%H:%M:%S.%e %l %v");
        return made;
    }();
    return instance;
}

}  // namespace

Result<void> set_log_level(const std::string& level) {
    for (const LevelName& entry : level_names)
        if (entry.name == level) {
            current = entry.level;
            return {};
        }
    return Error{ErrorCode::option,
                 "log level: unknown level \"" + level + "\"; accepted: trace, debug, info, warn, error, off", ""};
}

std::uint32_t log_level() { return current; }

void log_line(const std::string& source, std::uint32_t level, const std::string& text) {
    if (level < current || level >= ATTEND_LOG_OFF) return;
    const auto* entry =
        std::find_if(level_names.begin(), level_names.end(), [level](const LevelName& l) { return l.level == level; });
    if (entry != level_names.end()) logger().log(entry->spdlog_level, "{}: {}", source, text);
}

}  // namespace attend
