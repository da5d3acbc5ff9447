// Runs one method of an ExecuTorch program repeatedly and writes what it measured, as JSON of raw facts.
//
//   handheld_runner MODEL METHOD REPEAT WARMUP THREADS FACTS OUTPUT_PREFIX INPUT...
//
// INPUTs are files of raw fp32 values, in the order of the method's inputs. THREADS 0 leaves the pool as it is. FACTS is
// written at the end, and last: a run that died leaves none. OUTPUT_PREFIX0, OUTPUT_PREFIX1... get the outputs as raw
// fp32; "-" writes none. Exit status 0, or 1 with one line on stderr.

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <executorch/extension/module/module.h>
#include <executorch/extension/tensor/tensor.h>
#if __has_include(<executorch/extension/threadpool/threadpool.h>)
#include <executorch/extension/threadpool/threadpool.h>
#define HANDHELD_HAS_THREADPOOL 1
#endif

namespace {

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using executorch::extension::make_tensor_ptr;
using executorch::extension::Module;
using executorch::extension::TensorPtr;
using executorch::runtime::EValue;

[[noreturn]] void fail(const std::string& message) { throw std::runtime_error(message); }

template <class Result>
auto checked(Result&& result, const std::string& what) {
  if (!result.ok()) fail(what + " failed with ExecuTorch error " + std::to_string(static_cast<int>(result.error())));
  return std::move(result.get());
}

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// A line of /proc/self/status in bytes, or -1.
std::int64_t status_bytes(const char* key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(key, 0) == 0) return std::strtoll(line.c_str() + std::strlen(key), nullptr, 10) * 1024;
  return -1;
}

std::vector<float> read_floats(const std::string& path, std::size_t count) {
  std::ifstream file(path, std::ios::binary);
  std::vector<float> values(count);
  file.read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(count * sizeof(float)));
  if (!file || file.peek() != std::ifstream::traits_type::eof())
    fail(path + " does not hold " + std::to_string(count) + " fp32 values");
  return values;
}

// Reads a file through, so that loading it is measured with a warm file cache, as on a host.
void warm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail(path + " cannot be read");
  std::vector<char> block(1 << 20);
  while (file.read(block.data(), static_cast<std::streamsize>(block.size()))) {
  }
}

long number(const char* text) {
  char* end = nullptr;
  const long value = std::strtol(text, &end, 10);
  if (*text == '\0' || *end != '\0' || value < 0) fail(std::string(text) + " is not a whole number of at least 0");
  return value;
}

std::string or_null(std::int64_t value) { return value > 0 ? std::to_string(value) : "null"; }

std::int64_t run(Module& module, const std::string& method, const std::vector<EValue>& inputs,
                 std::vector<EValue>* outputs = nullptr) {
  const std::int64_t start = now_ns();
  auto result = module.execute(method, inputs);
  const std::int64_t elapsed = now_ns() - start;
  auto values = checked(result, "running " + method);
  if (outputs != nullptr) *outputs = std::move(values);
  return elapsed > 0 ? elapsed : 1;
}

void write_outputs(const std::string& prefix, const std::vector<EValue>& outputs) {
  for (std::size_t i = 0; i < outputs.size(); ++i) {
    const auto& tensor = outputs[i].toTensor();
    if (tensor.scalar_type() != ScalarType::Float && tensor.scalar_type() != ScalarType::Byte)
      fail("output " + std::to_string(i) + " is neither fp32 nor uint8");
    std::ofstream file(prefix + std::to_string(i), std::ios::binary);
    file.write(reinterpret_cast<const char*>(tensor.const_data_ptr()),
               static_cast<std::streamsize>(tensor.nbytes()));
    if (!file.flush()) fail(prefix + std::to_string(i) + " cannot be written: is the device full?");
  }
}

void measure(int argc, char** argv) {
  if (argc < 8)
    fail("usage: handheld_runner MODEL METHOD REPEAT WARMUP THREADS FACTS OUTPUT_PREFIX INPUT...");
  const std::string model = argv[1], method = argv[2], facts = argv[6], prefix = argv[7];
  const long repeat = number(argv[3]), warmup = number(argv[4]), threads = number(argv[5]);
  std::int64_t used_threads = -1;
#ifdef HANDHELD_HAS_THREADPOOL
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool != nullptr && threads > 0) pool->_unsafe_reset_threadpool(static_cast<std::uint32_t>(threads));
  if (pool != nullptr) used_threads = static_cast<std::int64_t>(pool->get_thread_count());
#else
  if (threads > 0) fail("this runner was built without ExecuTorch's thread pool: it cannot set THREADS");
#endif

  // Shapes come from the program; a module of its own, so that loading is measured from nothing.
  std::vector<std::vector<SizesType>> shapes;
  {
    Module described(model);
    auto meta = checked(described.method_meta(method), "loading " + model);
    if (static_cast<int>(meta.num_inputs()) != argc - 8)
      fail(method + " takes " + std::to_string(meta.num_inputs()) + " inputs, given " + std::to_string(argc - 8));
    for (std::size_t i = 0; i < meta.num_inputs(); ++i) {
      auto info = checked(meta.input_tensor_meta(i), "reading the inputs of " + method);
      if (info.scalar_type() != ScalarType::Float) fail("input " + std::to_string(i) + " is not fp32");
      shapes.emplace_back(info.sizes().begin(), info.sizes().end());
    }
  }
  std::vector<std::vector<float>> data;
  std::vector<TensorPtr> tensors;
  std::vector<EValue> inputs;
  for (std::size_t i = 0; i < shapes.size(); ++i) {
    std::size_t count = 1;
    for (const auto size : shapes[i]) count *= static_cast<std::size_t>(size);
    data.push_back(read_floats(argv[8 + i], count));
    tensors.push_back(make_tensor_ptr(shapes[i], data.back().data()));
    inputs.emplace_back(*tensors.back());
  }
  warm(model);

  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts here, where the kernel allows it
  const std::int64_t baseline = status_bytes("VmRSS:");
  const std::int64_t start = now_ns();
  Module module(model);
  if (module.load_method(method) != executorch::runtime::Error::Ok) fail("loading " + method + " failed");
  const std::int64_t load = now_ns() - start;
  const std::int64_t first = run(module, method, inputs);
  for (long i = 0; i < warmup; ++i) run(module, method, inputs);
  std::string samples;
  for (long i = 0; i < repeat; ++i)
    samples += (i > 0 ? ", " : "") + std::to_string(run(module, method, inputs));
  const std::int64_t peak = status_bytes("VmHWM:");
  if (prefix != "-") {
    std::vector<EValue> outputs;
    run(module, method, inputs, &outputs);
    write_outputs(prefix, outputs);
  }

#ifdef HANDHELD_EXECUTORCH_VERSION
  const std::string version = "\"" HANDHELD_EXECUTORCH_VERSION "\"";
#else
  const std::string version = "null";
#endif
  std::ostringstream json;
  json << "{\"runner_version\": 1, \"runtime_version\": " << version << ", \"threads\": " << or_null(used_threads)
       << ", \"load_ns\": " << or_null(load) << ", \"first_run_ns\": " << or_null(first) << ", \"latency_ns\": ["
       << samples << "], \"baseline_bytes\": " << or_null(baseline) << ", \"peak_bytes\": " << or_null(peak) << "}\n";
  std::ofstream file(facts);
  file << json.str();
  if (!file.flush()) fail(facts + " cannot be written: is the device full?");
}

}  // namespace

int main(int argc, char** argv) {
  try {
    measure(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "handheld_runner: %s\n", error.what());
    return 1;
  }
  return 0;
}
