// ONNX Runtime on the CPU. The values that a step gives out as present go in as past at the next, without a copy.
#include <onnxruntime_cxx_api.h>

#include "runtime.h"
#include "signature.h"

namespace gatenorm {
namespace {

struct Row {
    DType dtype;
    ONNXTensorElementDataType type;
};

constexpr Row kTypes[] = {
    {DType::float32, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT},     {DType::float16, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
    {DType::bfloat16, ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16}, {DType::float64, ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE},
    {DType::int64, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},       {DType::int32, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
    {DType::int8, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},         {DType::uint8, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
    {DType::boolean, ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL},
};

ONNXTensorElementDataType type_of(DType dtype) {
    for (const Row& row : kTypes) {
        if (row.dtype == dtype) return row.type;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

std::string dtype_text(ONNXTensorElementDataType type) {
    for (const Row& row : kTypes) {
        if (type == row.type) return name_of(row.dtype);
    }
    return "ONNX type " + std::to_string(type);
}

class OnnxRuntime final : public Runtime {
public:
    OnnxRuntime(std::string file, Ort::Env env, Ort::Session session, Signature signature, std::int64_t longest)
        : file_(std::move(file)),
          env_(std::move(env)),
          session_(std::move(session)),
          signature_(std::move(signature)),
          longest_(longest) {
        inputs_.push_back(signature_.tokens.name);
        if (signature_.mask) inputs_.push_back(signature_.mask->name);
        if (signature_.positions) inputs_.push_back(signature_.positions->name);
        outputs_.push_back(signature_.logits.name);
        for (const CachePort& cache : signature_.caches) {
            inputs_.push_back(cache.past.name);
            outputs_.push_back(cache.present.name);
        }
    }

    std::string description() const override { return "ONNX Runtime " + Ort::GetVersionString() + ", " + file_; }

    std::int64_t longest_step(std::int64_t) const override { return longest_; }

    Status begin(std::int64_t) override {
        past_ = 0;
        caches_.clear();
        return Done{};
    }

    Result<std::vector<float>> step(const std::vector<std::int64_t>& tokens) override {
        Result<std::vector<Feed>> feeds = make_feeds(signature_, tokens, past_);
        if (!feeds) return feeds.error();
        try {
            return run(*feeds, static_cast<std::int64_t>(tokens.size()));
        } catch (const Ort::Exception& error) {
            return failed(file_ + ": ONNX Runtime cannot run it (" + error.what() + ")");
        }
    }

private:
    Result<std::vector<float>> run(std::vector<Feed>& feeds, std::int64_t step) {
        std::vector<Ort::Value> values;
        for (Feed& feed : feeds) {
            values.push_back(Ort::Value::CreateTensor(memory_, feed.bytes.data(), feed.bytes.size(), feed.shape.data(),
                                                      feed.shape.size(), type_of(feed.port.dtype)));
        }
        if (past_ == 0) caches_ = empty_caches();
        for (Ort::Value& cache : caches_) values.push_back(std::move(cache));

        const std::vector<const char*> inputs = pointers(inputs_), outputs = pointers(outputs_);
        caches_ = session_.Run(Ort::RunOptions(), inputs.data(), values.data(), inputs.size(), outputs.data(),
                               outputs.size());
        const Ort::Value logits = std::move(caches_.front());
        caches_.erase(caches_.begin());
        past_ += step;

        const auto info = logits.GetTensorTypeAndShapeInfo();
        const auto vocabulary = static_cast<std::size_t>(info.GetShape().back());
        return decode_last(logits.GetTensorRawData(), info.GetElementCount(), vocabulary, signature_.logits.dtype);
    }

    std::vector<Ort::Value> empty_caches() const {
        std::vector<Ort::Value> caches;
        Ort::AllocatorWithDefaultOptions allocator;
        for (const CachePort& cache : signature_.caches) {
            const Shape shape = cache.past_shape(0);
            caches.push_back(
                Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type_of(cache.past.dtype)));
        }
        return caches;
    }

    static std::vector<const char*> pointers(const std::vector<std::string>& names) {
        std::vector<const char*> found;
        for (const std::string& name : names) found.push_back(name.c_str());
        return found;
    }

    std::string file_;
    Ort::Env env_;
    Ort::Session session_;
    Ort::MemoryInfo memory_ = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    Signature signature_;
    std::int64_t longest_;
    std::vector<std::string> inputs_, outputs_;  // In the order of the values.
    std::vector<Ort::Value> caches_;
    std::int64_t past_ = 0;
};

FoundTensor found_tensor(const std::string& name, const Ort::TypeInfo& type) {
    if (type.GetONNXType() != ONNX_TYPE_TENSOR) return {{name}, "no tensor"};
    return {{name}, dtype_text(type.GetTensorTypeAndShapeInfo().GetElementType())};
}

Status check_session(const Ort::Session& session, const Signature& signature, const std::string& where) {
    Ort::AllocatorWithDefaultOptions allocator;
    std::vector<FoundTensor> inputs, outputs;
    for (std::size_t index = 0; index < session.GetInputCount(); ++index) {
        inputs.push_back(
            found_tensor(session.GetInputNameAllocated(index, allocator).get(), session.GetInputTypeInfo(index)));
    }
    for (std::size_t index = 0; index < session.GetOutputCount(); ++index) {
        outputs.push_back(
            found_tensor(session.GetOutputNameAllocated(index, allocator).get(), session.GetOutputTypeInfo(index)));
    }
    return check_found(signature, inputs, outputs, where);
}

}  // namespace

const char* runtime_name() { return "ONNX Runtime"; }

Result<std::unique_ptr<Runtime>> open_runtime(const Bundle& bundle, const std::string& engine) {
    if (!engine.empty()) return refused("ONNX Runtime runs the bundle's graph; --engine is for TensorRT");
    // An older library than the headers has no such table of functions, and the first call would crash.
    if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
        return refused(std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() +
                       " is older than the headers that this program was built with; build it again");
    }
    Result<std::filesystem::path> file = bundle.graph_file();
    if (!file) return file.error();
    Result<Decoding> decoding = bundle.decoding();
    if (!decoding) return decoding.error();
    const GraphEntry& graph = *bundle.manifest.graph;
    Result<Signature> signature = make_signature(*decoding, graph.inputs, graph.outputs, file->string());
    if (!signature) return signature.error();
    try {
        Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "gatenorm");
        Ort::Session session(env, file->c_str(), Ort::SessionOptions());
        Status checked = check_session(session, *signature, file->string());
        if (!checked) return checked.error();
        const std::int64_t longest = longest_step_of(*signature, *decoding);
        return std::unique_ptr<Runtime>(std::make_unique<OnnxRuntime>(
            file->filename().string(), std::move(env), std::move(session), *std::move(signature), longest));
    } catch (const Ort::Exception& error) {
        return bad_input(file->string() + ": ONNX Runtime cannot load it (" + error.what() + ")");
    }
}

}  // namespace gatenorm
