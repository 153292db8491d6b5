// Engines here are text files: a line for each tensor, and one for each input's bounds in each profile.
//
//     input|output NAME TYPE RANK LENGTHS...          -1 where a length is open
//     bounds PROFILE NAME MIN... OPT... MAX...
//
// The first input is the tokens; inputs of more than two dimensions are caches [batch, ..., length, size], each paired
// with the output after the logits in its place. A step writes token number t of cache c as 100 * c + t to every
// element of its row. The next token is read off the caches alone, and every cache has to hold the same text:
//
//     next = (sum of (j + 1) * token[j] over all j) % vocabulary
//
// A context refuses a shape outside its profile, a profile or a step in an unknown stream, a tensor without its shape
// or address, addresses outside device memory, and an output over an input.
#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "NvInfer.h"
#include "device.h"

namespace {

using nvinfer1::Dims;
using Shape = std::vector<std::int64_t>;

struct Tensor {
    std::string name;
    bool input;
    nvinfer1::DataType type;
    Shape shape;
};

struct Bounds {
    Shape min, opt, max;
};

struct Plan {
    std::vector<Tensor> tensors;
    std::vector<std::map<std::string, Bounds>> profiles;

    const Tensor* find(const std::string& name) const {
        const auto found = std::find_if(tensors.begin(), tensors.end(), [&](auto& t) { return t.name == name; });
        return found == tensors.end() ? nullptr : &*found;
    }
};

Shape read_shape(std::istream& words, std::size_t rank) {
    Shape shape(rank);
    for (std::int64_t& length : shape) words >> length;
    return shape;
}

Plan read_plan(const std::string& text) {
    const std::map<std::string, nvinfer1::DataType> types = {{"float32", nvinfer1::DataType::kFLOAT},
                                                             {"float16", nvinfer1::DataType::kHALF},
                                                             {"int32", nvinfer1::DataType::kINT32},
                                                             {"int64", nvinfer1::DataType::kINT64}};
    Plan plan;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        std::istringstream words(line);
        std::string kind, name, type;
        std::size_t number;
        words >> kind;
        if (kind == "bounds") {
            words >> number >> name;
            plan.profiles.resize(std::max(plan.profiles.size(), number + 1));
            const std::size_t rank = plan.find(name)->shape.size();
            Bounds& bounds = plan.profiles[number][name];
            bounds.min = read_shape(words, rank);
            bounds.opt = read_shape(words, rank);
            bounds.max = read_shape(words, rank);
        } else {
            words >> name >> type >> number;
            plan.tensors.push_back({name, kind == "input", types.at(type), read_shape(words, number)});
        }
    }
    return plan;
}

Dims dims_of(const Shape& shape) {
    Dims dims{static_cast<std::int32_t>(shape.size()), {}};
    std::copy(shape.begin(), shape.end(), dims.d);
    return dims;
}

std::size_t count_of(const Shape& shape) {
    std::size_t count = 1;
    for (const std::int64_t length : shape) count *= static_cast<std::size_t>(length);
    return count;
}

std::size_t size_of(nvinfer1::DataType type) {
    if (type == nvinfer1::DataType::kINT64) return 8;
    return type == nvinfer1::DataType::kHALF ? 2 : 4;
}

// What a step works on: shapes and addresses as they were when it was put into the stream.
struct Step {
    std::vector<Tensor> inputs, outputs;  // With known shapes.
    std::map<std::string, char*> addresses;

    template <class T>
    T* at(const Tensor& tensor) const {
        return reinterpret_cast<T*>(addresses.at(tensor.name));
    }
};

class Context final : public nvinfer1::IExecutionContext {
public:
    Context(const Plan& plan, nvinfer1::ILogger& logger) : plan_(plan), logger_(logger) {}

    bool setOptimizationProfileAsync(std::int32_t index, cudaStream_t stream) noexcept override {
        if (!fake::Device::get().streams.count(stream)) return wrong("a profile is switched in no stream");
        profile_ = static_cast<std::size_t>(index);
        shapes_.clear();
        ++fake::Device::get().profile_switches;
        return true;
    }

    bool setInputShape(const char* name, const Dims& dims) noexcept override {
        const Bounds& bounds = plan_.profiles[profile_].at(name);
        const Shape shape(dims.d, dims.d + dims.nbDims);
        for (std::size_t axis = 0; axis < shape.size(); ++axis) {
            if (shape[axis] < bounds.min.at(axis) || shape[axis] > bounds.max.at(axis)) {
                return wrong(std::string(name) + " is outside of profile " + std::to_string(profile_));
            }
        }
        shapes_[name] = shape;
        return true;
    }

    Dims getTensorShape(const char* name) const noexcept override { return dims_of(shape_of(*plan_.find(name))); }

    bool setTensorAddress(const char* name, void* data) noexcept override {
        addresses_[name] = static_cast<char*>(data);
        return true;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (!fake::Device::get().streams.count(stream)) return wrong("a step is put into no stream");
        Step step;
        for (Tensor tensor : plan_.tensors) {
            tensor.shape = shape_of(tensor);
            if (std::count(tensor.shape.begin(), tensor.shape.end(), -1)) return wrong(tensor.name + " has no shape");
            const std::size_t bytes = count_of(tensor.shape) * size_of(tensor.type);
            char* address = addresses_[tensor.name];
            if (!fake::Device::get().holds(address, bytes)) return wrong(tensor.name + " is not in device memory");
            step.addresses[tensor.name] = address;
            (tensor.input ? step.inputs : step.outputs).push_back(tensor);
        }
        for (const Tensor& input : step.inputs) {
            for (const Tensor& output : step.outputs) {
                if (step.at<char>(input) == step.at<char>(output))
                    return wrong(output.name + " lies over " + input.name);
            }
        }
        stream->work.push_back([step, this] { run(step); });
        return true;
    }

private:
    bool wrong(const std::string& what) const {
        logger_.log(nvinfer1::ILogger::Severity::kERROR, what.c_str());
        return false;
    }

    // Known for inputs once they are set, and for outputs once the inputs are.
    Shape shape_of(const Tensor& tensor) const {
        if (tensor.input) return shapes_.count(tensor.name) ? shapes_.at(tensor.name) : tensor.shape;
        const std::int64_t step = shape_of(plan_.tensors.front())[1];
        std::vector<const Tensor*> past;
        for (const Tensor& other : plan_.tensors) {
            if (other.input && other.shape.size() > 2) past.push_back(&other);
        }
        for (std::size_t index = 0, place = 0; index < plan_.tensors.size(); ++index) {
            if (plan_.tensors[index].input) continue;
            if (plan_.tensors[index].name == tensor.name) {
                if (place == 0) return {1, step, tensor.shape.back()};
                Shape shape = shape_of(*past[place - 1]);
                std::int64_t& length = shape[shape.size() - 2];
                length = length < 0 || step < 0 ? -1 : length + step;
                return shape;
            }
            ++place;
        }
        return {};
    }

    static void run(const Step& step) {
        const auto* tokens = step.at<std::int64_t>(step.inputs[0]);
        const auto n_new = static_cast<std::size_t>(step.inputs[0].shape[1]);
        std::vector<std::vector<float>> texts;
        for (std::size_t input = 0, cache = 0; input < step.inputs.size(); ++input) {
            if (step.inputs[input].shape.size() > 2) texts.push_back(extend(step, input, ++cache, tokens, n_new));
        }
        const bool sound = std::all_of(texts.begin(), texts.end(), [&](auto& text) { return text == texts.front(); });
        const auto vocabulary = static_cast<std::size_t>(step.outputs[0].shape.back());
        auto* logits = step.at<float>(step.outputs[0]);
        std::fill(logits, logits + n_new * vocabulary, 0.0f);
        float sum = 0;
        for (std::size_t j = 0; j < texts.front().size(); ++j) sum += static_cast<float>(j + 1) * texts.front()[j];
        float* last = logits + (n_new - 1) * vocabulary;
        last[static_cast<std::size_t>(sum) % vocabulary] = sound ? 1.0f : std::nanf("");
    }

    static float number(std::size_t cache) { return 100.0f * static_cast<float>(cache); }

    // Copy a cache's past to its present with the new rows behind it; the text that it holds then.
    static std::vector<float> extend(const Step& step, std::size_t input, std::size_t cache, const std::int64_t* tokens,
                                     std::size_t n_new) {
        const Tensor& past = step.inputs[input];
        const auto* from = step.at<float>(past);
        auto* to = step.at<float>(step.outputs[cache]);
        const auto n_past = static_cast<std::size_t>(past.shape[past.shape.size() - 2]);
        const auto size = static_cast<std::size_t>(past.shape.back());
        std::size_t heads = 1;
        for (std::size_t axis = 0; axis + 2 < past.shape.size(); ++axis) {
            heads *= static_cast<std::size_t>(past.shape[axis]);
        }
        std::vector<float> text;
        for (std::size_t head = 0; head < heads; ++head) {
            for (std::size_t row = 0; row < n_past + n_new; ++row) {
                for (std::size_t element = 0; element < size; ++element) {
                    const float value = row < n_past ? from[(head * n_past + row) * size + element]
                                                     : number(cache) + static_cast<float>(tokens[row - n_past]);
                    to[(head * (n_past + n_new) + row) * size + element] = value;
                    if (head + element == 0) text.push_back(value - number(cache));
                }
            }
        }
        return text;
    }

    const Plan& plan_;
    nvinfer1::ILogger& logger_;
    std::size_t profile_ = 0;
    std::map<std::string, Shape> shapes_;
    std::map<std::string, char*> addresses_;
};

class Engine final : public nvinfer1::ICudaEngine {
public:
    Engine(Plan plan, nvinfer1::ILogger& logger) : plan_(std::move(plan)), logger_(logger) {}

    std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(plan_.tensors.size()); }
    const char* getIOTensorName(std::int32_t index) const noexcept override {
        return plan_.tensors[static_cast<std::size_t>(index)].name.c_str();
    }
    nvinfer1::TensorIOMode getTensorIOMode(const char* name) const noexcept override {
        return plan_.find(name)->input ? nvinfer1::TensorIOMode::kINPUT : nvinfer1::TensorIOMode::kOUTPUT;
    }
    nvinfer1::TensorLocation getTensorLocation(const char*) const noexcept override {
        return nvinfer1::TensorLocation::kDEVICE;
    }
    nvinfer1::DataType getTensorDataType(const char* name) const noexcept override { return plan_.find(name)->type; }
    std::int32_t getNbOptimizationProfiles() const noexcept override {
        return static_cast<std::int32_t>(plan_.profiles.size());
    }
    Dims getProfileShape(const char* name, std::int32_t index,
                         nvinfer1::OptProfileSelector which) const noexcept override {
        const Bounds& bounds = plan_.profiles[static_cast<std::size_t>(index)].at(name);
        if (which == nvinfer1::OptProfileSelector::kMIN) return dims_of(bounds.min);
        return dims_of(which == nvinfer1::OptProfileSelector::kOPT ? bounds.opt : bounds.max);
    }
    nvinfer1::IExecutionContext* createExecutionContext() noexcept override { return new Context(plan_, logger_); }

private:
    Plan plan_;
    nvinfer1::ILogger& logger_;
};

class Runtime final : public nvinfer1::IRuntime {
public:
    explicit Runtime(nvinfer1::ILogger& logger) : logger_(logger) {}

    nvinfer1::ICudaEngine* deserializeCudaEngine(const void* bytes, std::size_t size) noexcept override {
        const std::string text(static_cast<const char*>(bytes), size);
        if (text.compare(0, 5, "input") != 0) {
            logger_.log(nvinfer1::ILogger::Severity::kERROR, "the engine begins with unknown bytes");
            return nullptr;
        }
        return new Engine(read_plan(text), logger_);
    }

private:
    nvinfer1::ILogger& logger_;
};

}  // namespace

nvinfer1::IRuntime* nvinfer1::createInferRuntime(ILogger& logger) noexcept { return new Runtime(logger); }

std::int32_t getInferLibMajorVersion() noexcept { return 11; }
std::int32_t getInferLibMinorVersion() noexcept { return 1; }
std::int32_t getInferLibPatchVersion() noexcept { return 0; }
std::int32_t getInferLibBuildVersion() noexcept { return 106; }
