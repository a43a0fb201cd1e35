// SPDX-License-Identifier: Apache-2.0
// write_catalogue PLUGIN_DIR: the mechanism reference of the plugins in a folder, on standard output.
#include <cstdio>

#include "attend/attention_service.hpp"
#include "attend/registry/catalogue.hpp"

int main(int count, char** arguments) {
    if (count != 2) {
        std::fprintf(stderr, "usage: write_catalogue PLUGIN_DIR\n");
        return 2;
    }
    attend::ServiceSettings settings;
    settings.config.service = {};
    settings.built_in_dir = arguments[1];
    auto service = attend::AttentionService::open(std::move(settings));
    if (!service) {
        std::fprintf(stderr, "%s\n", service.error().message.c_str());
        return 1;
    }
    std::fputs(attend::write_catalogue(*(*service)->registry()).c_str(), stdout);
    return 0;
}
