// OpenVINO on the CPU. Two requests take turns: what one wrote as present is what the other reads as past.
#include <array>
#include <openvino/openvino.hpp>

#include "runtime.h"
#include "signature.h"

namespace gatenorm {
namespace {

struct Row {
    DType dtype;
    ov::element::Type_t type;
};

constexpr Row kTypes[] = {
    {DType::float32, ov::element::Type_t::f32},     {DType::float16, ov::element::Type_t::f16},
    {DType::bfloat16, ov::element::Type_t::bf16},   {DType::float64, ov::element::Type_t::f64},
    {DType::int64, ov::element::Type_t::i64},       {DType::int32, ov::element::Type_t::i32},
    {DType::int8, ov::element::Type_t::i8},         {DType::uint8, ov::element::Type_t::u8},
    {DType::boolean, ov::element::Type_t::boolean},
};

ov::element::Type type_of(DType dtype) {
    for (const Row& row : kTypes) {
        if (row.dtype == dtype) return row.type;
    }
    return ov::element::dynamic;
}

std::string dtype_text(const ov::element::Type& type) {
    for (const Row& row : kTypes) {
        if (type == row.type) return name_of(row.dtype);
    }
    return type.to_string();
}

ov::Shape shape_of(const Shape& shape) { return ov::Shape(shape.begin(), shape.end()); }

std::string first_line(const std::exception& error) {
    const std::string text = error.what();
    return text.substr(0, text.find('\n'));
}

class OpenVino final : public Runtime {
public:
    OpenVino(std::string file, ov::CompiledModel model, Signature signature, std::int64_t longest)
        : file_(std::move(file)),
          requests_{model.create_infer_request(), model.create_infer_request()},
          signature_(std::move(signature)),
          longest_(longest) {}

    std::string description() const override {
        const std::string build = ov::get_openvino_version().buildNumber;
        return "OpenVINO " + build.substr(0, build.find('-')) + ", " + file_;
    }

    std::int64_t longest_step(std::int64_t) const override { return longest_; }

    Status begin(std::int64_t) override {
        past_ = 0;
        return Done{};
    }

    Result<std::vector<float>> step(const std::vector<std::int64_t>& tokens) override {
        Result<std::vector<Feed>> feeds = make_feeds(signature_, tokens, past_);
        if (!feeds) return feeds.error();
        try {
            return run(*feeds, static_cast<std::int64_t>(tokens.size()));
        } catch (const std::exception& error) {
            return failed(file_ + ": OpenVINO cannot run it (" + first_line(error) + ")");
        }
    }

private:
    Result<std::vector<float>> run(std::vector<Feed>& feeds, std::int64_t step) {
        ov::InferRequest& last = requests_[turn_];
        ov::InferRequest& now = requests_[1 - turn_];
        for (Feed& feed : feeds) {
            now.set_tensor(feed.port.name,
                           ov::Tensor(type_of(feed.port.dtype), shape_of(feed.shape), feed.bytes.data()));
        }
        for (const CachePort& cache : signature_.caches) {
            const ov::Tensor past = past_ ? last.get_tensor(cache.present.name)
                                          : ov::Tensor(type_of(cache.past.dtype), shape_of(cache.past_shape(0)));
            now.set_tensor(cache.past.name, past);
        }
        now.infer();
        turn_ = 1 - turn_;
        past_ += step;

        const ov::Tensor logits = now.get_tensor(signature_.logits.name);
        return decode_last(logits.data(), logits.get_size(), logits.get_shape().back(), signature_.logits.dtype);
    }

    std::string file_;
    std::array<ov::InferRequest, 2> requests_;
    Signature signature_;
    std::int64_t longest_;
    std::size_t turn_ = 0;
    std::int64_t past_ = 0;
};

std::vector<FoundTensor> found_in(const std::vector<ov::Output<const ov::Node>>& ports) {
    std::vector<FoundTensor> found;
    for (const auto& port : ports) {
        const auto& names = port.get_names();
        found.push_back({{names.begin(), names.end()}, dtype_text(port.get_element_type())});
    }
    return found;
}

}  // namespace

const char* runtime_name() { return "OpenVINO"; }

Result<std::unique_ptr<Runtime>> open_runtime(const Bundle& bundle, const std::string& engine) {
    if (!engine.empty()) return refused("OpenVINO runs the bundle's graph; --engine is for TensorRT");
    Result<std::filesystem::path> file = bundle.graph_file();
    if (!file) return file.error();
    Result<Decoding> decoding = bundle.decoding();
    if (!decoding) return decoding.error();
    const GraphEntry& graph = *bundle.manifest.graph;
    Result<Signature> signature = make_signature(*decoding, graph.inputs, graph.outputs, file->string());
    if (!signature) return signature.error();
    try {
        ov::Core core;
        // Without this hint the plugin may compute in half precision where the processor has it.
        ov::CompiledModel model =
            core.compile_model(file->string(), "CPU", ov::hint::execution_mode(ov::hint::ExecutionMode::ACCURACY),
                               ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY));
        Status checked = check_found(*signature, found_in(model.inputs()), found_in(model.outputs()), file->string());
        if (!checked) return checked.error();
        const std::int64_t longest = longest_step_of(*signature, *decoding);
        return std::unique_ptr<Runtime>(
            std::make_unique<OpenVino>(file->filename().string(), std::move(model), *std::move(signature), longest));
    } catch (const std::exception& error) {
        return bad_input(file->string() + ": OpenVINO cannot load it (" + first_line(error) + ")");
    }
}

}  // namespace gatenorm
