// SPDX-License-Identifier: Apache-2.0
#include "program.hpp"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>

namespace cli_test {
namespace {

std::string read_all(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(stream), std::istreambuf_iterator<char>()};
}

}  // namespace

attend::Json Run::json() const {
    auto parsed = attend::parse_json(out, "standard output");
    INFO(out << err);
    REQUIRE(parsed.ok());
    return *parsed;
}

Run run_attend(const std::vector<std::string>& arguments, const Environment& environment,
               const std::string& stdout_path) {
    const Folder folder;
    const std::string out = folder / "out", err = folder / "err";
    std::vector<std::string> words{ATTEND_PROGRAM};
    words.insert(words.end(), arguments.begin(), arguments.end());
    Environment all{{"HOME", folder / "home"}, {"PATH", "/usr/bin:/bin"}};
    for (const auto& [name, value] : environment) all[name] = value;
    std::vector<std::string> settings;
    for (const auto& [name, value] : all) settings.push_back(name + "=" + value);
    std::vector<char*> argv, envp;
    for (std::string& word : words) argv.push_back(word.data());
    for (std::string& setting : settings) envp.push_back(setting.data());
    argv.push_back(nullptr);
    envp.push_back(nullptr);
    const pid_t child = ::fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        const int to = ::open(stdout_path.empty() ? out.c_str() : stdout_path.c_str(), O_WRONLY | O_CREAT, 0600);
        const int errors = ::open(err.c_str(), O_WRONLY | O_CREAT, 0600);
        ::dup2(to, 1);
        ::dup2(errors, 2);
        ::execve(argv[0], argv.data(), envp.data());
        ::_exit(127);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status), read_all(out), read_all(err)};
}

Folder::Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "attend-cli-XXXXXX").string();
    REQUIRE(::mkdtemp(name.data()) != nullptr);
    path_ = name;
}

Folder::~Folder() {
    std::error_code status;
    std::filesystem::remove_all(path_, status);
}

std::string Folder::write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
}

std::string plugin_folder(const std::string& name) { return std::string(CLI_TEST_PLUGINS) + "/cli_" + name; }
std::string plugin(const std::string& name) { return plugin_folder(name) + "/libattend_cli_" + name + ".so"; }

attend::Tensor floats(std::vector<std::int64_t> shape, const std::vector<float>& values) {
    auto tensor = attend::Tensor::allocate(attend::DType::f32, std::move(shape));
    REQUIRE(tensor.ok());
    REQUIRE(static_cast<std::size_t>(tensor->size()) == values.size());
    std::copy(values.begin(), values.end(), tensor->as<float>());
    return *tensor;
}

attend::Tensor ramp(std::vector<std::int64_t> shape, float step) {
    std::int64_t count = 1;
    for (const std::int64_t extent : shape) count *= extent;
    std::vector<float> values;
    for (std::int64_t at = 0; at < count; ++at) values.push_back(step * static_cast<float>((at * 37) % 101 - 50));
    return floats(std::move(shape), values);
}

attend::Tensor bytes(attend::DType dtype, std::vector<std::int64_t> shape, const std::vector<std::uint8_t>& values) {
    auto tensor = attend::Tensor::allocate(dtype, std::move(shape));
    REQUIRE(tensor.ok());
    REQUIRE(tensor->byte_size() == values.size());
    std::memcpy(tensor->data, values.data(), values.size());
    return *tensor;
}

void save(const std::string& path, std::vector<std::pair<std::string, attend::Tensor>> tensors) {
    attend::io::TensorFile file;
    file.tensors = std::move(tensors);
    REQUIRE(attend::io::write_tensor_file(path, file).ok());
}

attend::io::TensorFile load(const std::string& path) {
    auto file = attend::io::read_tensor_file(path);
    REQUIRE(file.ok());
    return *file;
}

std::vector<double> elements(const attend::Tensor& tensor) {
    auto wide = attend::convert(tensor, attend::DType::f64);
    REQUIRE(wide.ok());
    auto rows = attend::contiguous_copy(*wide);
    REQUIRE(rows.ok());
    const auto* data = rows->as<const double>();
    return {data, data + rows->size()};
}

double largest_difference(const attend::Tensor& a, const attend::Tensor& b) {
    const std::vector<double> left = elements(a), right = elements(b);
    REQUIRE(left.size() == right.size());
    double largest = 0;
    for (std::size_t at = 0; at < left.size(); ++at) largest = std::max(largest, std::abs(left[at] - right[at]));
    return largest;
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
std::size_t lines(const std::string& text) {
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n'));
}

void check_error(const Run& run, int status, const std::vector<std::string>& parts) {
    INFO("standard output: " << run.out);
    INFO("standard error: " << run.err);
    CHECK(run.status == status);
    CHECK(run.out.empty());
    CHECK(run.err.starts_with("attend: "));
    for (const std::string& part : parts) {
        INFO("expected: " << part);
        CHECK(contains(run.err, part));
    }
}

}  // namespace cli_test
