// From a file to an engine of TensorRT or TensorRT-RTX; the two have one API and differ in name and version.
#pragma once

#include <NvInfer.h>

#include <filesystem>
#include <memory>
#include <string>

#include "signature.h"

namespace gatenorm {

#ifdef GATENORM_TENSORRT_RTX
constexpr const char* kFlavour = "tensorrt-rtx";
#else
constexpr const char* kFlavour = "tensorrt";
#endif

// Keeps the last error that TensorRT reported, for messages of our own.
class Log final : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override;
    const std::string& last_error() const { return last_error_; }

private:
    std::string last_error_;
};

// In this order: what is below is freed first.
struct LoadedEngine {
    std::unique_ptr<Log> log;
    std::unique_ptr<nvinfer1::IRuntime> runtime;
    std::unique_ptr<nvinfer1::ICudaEngine> engine;
};

// "1.7.1.116"
std::string library_version();

// The library's version and this machine's GPU, before anything is loaded.
Status check_runnable(const EngineEntry& entry);

// Deserialise the engine, and hold its tensors and profiles against the manifest.
Result<LoadedEngine> load_engine(const std::filesystem::path& file, const EngineEntry& entry,
                                 const Signature& signature);

// The lengths, as the context knows them; -1 where one is not known.
Shape shape_of(const nvinfer1::Dims& dims);

}  // namespace gatenorm
