// SPDX-License-Identifier: Apache-2.0
// compare_output ACTUAL EXPECTED [LIMIT]: the largest absolute difference of the tensors called "output" in two tensor
// files; with a limit, exit status 1 if it is not below. Shows how to read tensor files from C++.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "io/tensor_file.hpp"

int main(int count, char** arguments) {
    if (count < 3 || count > 4) {
        std::fprintf(stderr, "usage: compare_output ACTUAL EXPECTED [LIMIT]\n");
        return 2;
    }
    attend::Tensor tensors[2];
    for (int at = 0; at < 2; ++at) {
        auto file = attend::io::read_tensor_file(arguments[at + 1]);
        const attend::Tensor* output = file ? file->find("output") : nullptr;
        if (output == nullptr) {
            std::fprintf(stderr, "%s: %s\n", arguments[at + 1],
                         file ? "has no tensor \"output\"" : file.error().message.c_str());
            return 2;
        }
        auto converted = attend::convert(*output, attend::DType::f32);
        if (!converted) return 2;
        tensors[at] = attend::contiguous_copy(*converted).value();
    }
    if (tensors[0].shape != tensors[1].shape) {
        std::fprintf(stderr, "the shapes differ: %s and %s\n", attend::shape_text(tensors[0].shape).c_str(),
                     attend::shape_text(tensors[1].shape).c_str());
        return 1;
    }
    double worst = 0.0;
    for (std::int64_t at = 0; at < tensors[0].size(); ++at) {
        const double difference = std::abs(static_cast<double>(tensors[0].as<const float>()[at]) -
                                           static_cast<double>(tensors[1].as<const float>()[at]));
        if (!(difference <= worst)) worst = difference;  // NaN counts as worst
    }
    std::printf("maximum absolute difference: %.3g over %lld values\n", worst,
                static_cast<long long>(tensors[0].size()));
    return count == 4 && !(worst < std::atof(arguments[3])) ? 1 : 0;
}
