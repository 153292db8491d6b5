#include "loading.h"

#include <algorithm>
#include <fstream>
#include <vector>

#include "cuda.h"

namespace gatenorm {
namespace {

struct Row {
    DType dtype;
    nvinfer1::DataType type;
};

constexpr Row kTypes[] = {
    {DType::float32, nvinfer1::DataType::kFLOAT}, {DType::float16, nvinfer1::DataType::kHALF},
    {DType::bfloat16, nvinfer1::DataType::kBF16}, {DType::int64, nvinfer1::DataType::kINT64},
    {DType::int32, nvinfer1::DataType::kINT32},   {DType::int8, nvinfer1::DataType::kINT8},
    {DType::uint8, nvinfer1::DataType::kUINT8},   {DType::boolean, nvinfer1::DataType::kBOOL},
};

std::string dtype_text(nvinfer1::DataType type) {
    for (const Row& row : kTypes) {
        if (type == row.type) return name_of(row.dtype);
    }
    return "TensorRT type " + std::to_string(static_cast<int>(type));
}

// A compute capability as one number: "12.0" and "12.0+" are 1200.
int number_of(const std::string& capability) {
    const std::size_t dot = capability.find('.');
    if (dot == std::string::npos) return 100 * std::atoi(capability.c_str());
    return 100 * std::atoi(capability.c_str()) + std::atoi(capability.c_str() + dot + 1);
}

// "12.0+" covers 12.0 and newer ones, "8.9" only itself.
bool covers(const std::string& listed, int found) {
    const bool newer_too = !listed.empty() && listed.back() == '+';
    return newer_too ? found >= number_of(listed) : found == number_of(listed);
}

std::string joined(const std::vector<std::string>& words) {
    std::string text;
    for (const std::string& word : words) text += (text.empty() ? "" : ", ") + word;
    return text;
}

Status check_gpu(const EngineEntry& entry) {
    int count = 0;
    const cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess || count == 0) {
        return refused(entry.file + ": needs an NVIDIA GPU, and CUDA finds none (" + cudaGetErrorString(code) +
                       "); the bundle's graph runs without one");
    }
    int device = 0, major = 0, minor = 0;
    Status asked = check_cuda(cudaGetDevice(&device), "name the GPU");
    if (!asked) return asked;
    asked = check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "ask the GPU");
    if (!asked) return asked;
    asked = check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "ask the GPU");
    if (!asked) return asked;
    const auto& listed = entry.capabilities;
    const int found = 100 * major + minor;
    if (listed.empty() || std::any_of(listed.begin(), listed.end(), [&](auto& word) { return covers(word, found); })) {
        return Done{};
    }
    return refused(entry.file + ": was built for compute capability " + joined(listed) + ", and this GPU has " +
                   std::to_string(major) + "." + std::to_string(minor) + "; build it again");
}

Result<std::vector<char>> bytes_in(const std::filesystem::path& file) {
    std::ifstream stream(file, std::ios::binary | std::ios::ate);
    if (!stream) return bad_input(file.string() + ": cannot be read");
    std::vector<char> bytes(static_cast<std::size_t>(stream.tellg()));
    stream.seekg(0);
    stream.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!stream) return bad_input(file.string() + ": cannot be read to its end");
    return bytes;
}

Status check_tensors(const nvinfer1::ICudaEngine& engine, const Signature& signature, const std::string& where) {
    std::vector<FoundTensor> inputs, outputs;
    for (int index = 0; index < engine.getNbIOTensors(); ++index) {
        const char* name = engine.getIOTensorName(index);
        if (engine.getTensorLocation(name) != nvinfer1::TensorLocation::kDEVICE) {
            return refused(where + ": " + name + " is read on the host, and these programs keep tensors on the GPU");
        }
        const bool fed = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
        (fed ? inputs : outputs).push_back({{name}, dtype_text(engine.getTensorDataType(name))});
    }
    return check_found(signature, inputs, outputs, where);
}

Status check_profiles(const nvinfer1::ICudaEngine& engine, const std::vector<Profile>& profiles,
                      const std::string& where) {
    using Selector = nvinfer1::OptProfileSelector;
    if (engine.getNbOptimizationProfiles() != static_cast<int>(profiles.size())) {
        return bad_input(where + ": has " + std::to_string(engine.getNbOptimizationProfiles()) +
                         " optimisation profiles, and " + std::to_string(profiles.size()) + " by the manifest");
    }
    for (int index = 0; index < static_cast<int>(profiles.size()); ++index) {
        for (const ProfileBounds& bounds : profiles[static_cast<std::size_t>(index)].bounds) {
            const char* name = bounds.input.c_str();
            if (shape_of(engine.getProfileShape(name, index, Selector::kMIN)) != bounds.min ||
                shape_of(engine.getProfileShape(name, index, Selector::kOPT)) != bounds.opt ||
                shape_of(engine.getProfileShape(name, index, Selector::kMAX)) != bounds.max) {
                return bad_input(where + ": its profile " + std::to_string(index) + " has other bounds for " +
                                 bounds.input + " than the manifest");
            }
        }
    }
    return Done{};
}

}  // namespace

void Log::log(Severity severity, const char* message) noexcept {
    if (severity > Severity::kERROR || message == nullptr) return;
    try {
        const std::string text = message;
        last_error_ = text.substr(0, text.find('\n'));
    } catch (...) {
        // No memory for a message: the caller says that something failed without it.
    }
}

std::string library_version() {
    return std::to_string(getInferLibMajorVersion()) + "." + std::to_string(getInferLibMinorVersion()) + "." +
           std::to_string(getInferLibPatchVersion()) + "." + std::to_string(getInferLibBuildVersion());
}

Status check_runnable(const EngineEntry& entry) {
    const std::string version = library_version();
    if (entry.flavour_version != version) {
        return refused(entry.file + ": was built by " + kFlavour + " " + entry.flavour_version + ", and this is " +
                       version + "; an engine runs on the version that built it, build it again");
    }
    return check_gpu(entry);
}

Result<LoadedEngine> load_engine(const std::filesystem::path& file, const EngineEntry& entry,
                                 const Signature& signature) {
    const std::string where = file.string();
    Result<std::vector<char>> bytes = bytes_in(file);
    if (!bytes) return bytes.error();
    LoadedEngine loaded;
    loaded.log = std::make_unique<Log>();
    loaded.runtime.reset(nvinfer1::createInferRuntime(*loaded.log));
    if (!loaded.runtime) return failed(where + ": no " + kFlavour + " runtime (" + loaded.log->last_error() + ")");
    loaded.engine.reset(loaded.runtime->deserializeCudaEngine(bytes->data(), bytes->size()));
    if (!loaded.engine) {
        return bad_input(where + ": " + kFlavour + " cannot load it (" + loaded.log->last_error() + ")");
    }
    Status checked = check_tensors(*loaded.engine, signature, where);
    if (!checked) return checked.error();
    checked = check_profiles(*loaded.engine, entry.profiles, where);
    if (!checked) return checked.error();
    return loaded;
}

Shape shape_of(const nvinfer1::Dims& dims) {
    Shape shape;
    for (int axis = 0; axis < dims.nbDims; ++axis) shape.push_back(dims.d[axis]);
    return shape;
}

}  // namespace gatenorm
