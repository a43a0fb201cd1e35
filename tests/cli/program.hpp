// SPDX-License-Identifier: Apache-2.0
// Runs the built program: its output, its errors, its exit status. Every run has an environment of its own, without
// the user's configuration and without variables that the program reads.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "attend/config/json.hpp"
#include "io/tensor_file.hpp"
#include "support/catch.hpp"

namespace cli_test {

struct Run {
    int status{-1};
    std::string out, err;
    [[nodiscard]] attend::Json json() const;  // of standard output; fails the test if it is not one document
};

using Environment = std::map<std::string, std::string>;
Run run_attend(const std::vector<std::string>& arguments, const Environment& environment = {},
               const std::string& stdout_path = "");

// A fresh folder that is removed at the end of the test.
class Folder {
public:
    Folder();
    ~Folder();
    Folder(const Folder&) = delete;
    Folder& operator=(const Folder&) = delete;
    [[nodiscard]] std::string operator/(const std::string& name) const { return (path_ / name).string(); }
    std::string write(const std::string& name, const std::string& text) const;  // the path

private:
    std::filesystem::path path_;
};

// Path of a test plugin: "echo", "shadow", "closed", "crash"; and of the folder that holds it.
std::string plugin(const std::string& name);
std::string plugin_folder(const std::string& name);

// Tensors with given elements.
attend::Tensor floats(std::vector<std::int64_t> shape, const std::vector<float>& values);
attend::Tensor ramp(std::vector<std::int64_t> shape, float step = 0.01f);  // distinct, small, of both signs
attend::Tensor bytes(attend::DType dtype, std::vector<std::int64_t> shape, const std::vector<std::uint8_t>& values);
void save(const std::string& path, std::vector<std::pair<std::string, attend::Tensor>> tensors);
attend::io::TensorFile load(const std::string& path);
// The elements as doubles, row-major.
std::vector<double> elements(const attend::Tensor& tensor);
double largest_difference(const attend::Tensor& a, const attend::Tensor& b);

// One line "attend: ..." that holds every part; nothing on standard output.
void check_error(const Run& run, int status, const std::vector<std::string>& parts);
bool contains(const std::string& text, const std::string& part);
std::size_t lines(const std::string& text);

}  // namespace cli_test
