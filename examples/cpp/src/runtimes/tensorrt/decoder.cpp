// An engine as a decoder. The cache stays on the GPU: a step reads its past from one set of buffers and writes its
// present to the other, and the next step reads that one. Everything runs in one stream.
#include <array>

#include "cuda.h"
#include "loading.h"
#include "profiles.h"
#include "runtime.h"

namespace gatenorm {
namespace {

nvinfer1::Dims dims_of(const Shape& shape) {
    nvinfer1::Dims dims{};
    dims.nbDims = static_cast<std::int32_t>(shape.size());
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        dims.d[axis] = static_cast<std::decay_t<decltype(dims.d[axis])>>(shape[axis]);
    }
    return dims;
}

// What a decoder is made of; destroyed from the last to the first.
struct Parts {
    std::string file;
    Signature signature;
    ProfileTable profiles;
    LoadedEngine loaded;
    Stream stream;
    std::unique_ptr<nvinfer1::IExecutionContext> context;
};

class EngineDecoder final : public Runtime {
public:
    explicit EngineDecoder(Parts parts) : parts_(std::move(parts)) {
        for (std::vector<DeviceBuffer>& buffers : sets_) buffers.resize(parts_.signature.caches.size());
    }

    std::string description() const override {
        return std::string(kFlavour) + " " + library_version() + ", " + parts_.file;
    }

    std::int64_t longest_step(std::int64_t past) const override { return parts_.profiles.longest_step(past); }

    Status begin(std::int64_t most) override {
        past_ = 0;
        for (std::size_t index = 0; index < parts_.signature.caches.size(); ++index) {
            const CachePort& cache = parts_.signature.caches[index];
            Result<std::size_t> bytes = bytes_of(cache.past_shape(most), cache.past.dtype);
            if (!bytes) return bytes.error();
            for (std::vector<DeviceBuffer>& buffers : sets_) {
                Status given = buffers[index].reserve(*bytes);
                if (!given) return given;
            }
        }
        return Done{};
    }

    Result<std::vector<float>> step(const std::vector<std::int64_t>& tokens) override {
        const auto length = static_cast<std::int64_t>(tokens.size());
        Result<std::vector<Feed>> feeds = make_feeds(parts_.signature, tokens, past_);
        if (!feeds) return feeds.error();
        Status done = use_profile(length);
        if (!done) return done.error();
        done = set_feeds(*feeds);
        if (!done) return done.error();
        done = set_caches();
        if (!done) return done.error();
        Result<std::vector<float>> logits = run();
        if (!logits) return logits;
        live_ = 1 - live_;
        past_ += length;
        return logits;
    }

private:
    // Switching costs, so it is done only where the other profile is wanted: once, behind the prompt.
    Status use_profile(std::int64_t step) {
        const std::optional<std::size_t> wanted = parts_.profiles.choose(step, past_);
        if (!wanted) {
            return refused(parts_.file + ": no optimisation profile takes " + std::to_string(step) +
                           " tokens onto a cache of " + std::to_string(past_));
        }
        if (wanted == profile_) return Done{};
        const auto index = static_cast<std::int32_t>(*wanted);
        if (!parts_.context->setOptimizationProfileAsync(index, parts_.stream.get())) {
            return refusal("profile " + std::to_string(index) + " cannot be used");
        }
        profile_ = wanted;
        return Done{};
    }

    Status set_feeds(const std::vector<Feed>& feeds) {
        feeds_.resize(feeds.size());
        for (std::size_t index = 0; index < feeds.size(); ++index) {
            const Feed& feed = feeds[index];
            Status done = feeds_[index].reserve(feed.bytes.size());
            if (!done) return done;
            done = check_cuda(cudaMemcpyAsync(feeds_[index].data(), feed.bytes.data(), feed.bytes.size(),
                                              cudaMemcpyHostToDevice, parts_.stream.get()),
                              "copy tokens to the GPU");
            if (!done) return done;
            done = set_input(feed.port.name, feed.shape, feeds_[index]);
            if (!done) return done;
        }
        return Done{};
    }

    Status set_caches() {
        // All inputs first: only then does the context know the lengths of the outputs.
        for (std::size_t index = 0; index < parts_.signature.caches.size(); ++index) {
            const CachePort& cache = parts_.signature.caches[index];
            Status done = set_input(cache.past.name, cache.past_shape(past_), sets_[live_][index]);
            if (!done) return done;
        }
        for (std::size_t index = 0; index < parts_.signature.caches.size(); ++index) {
            const Port& present = parts_.signature.caches[index].present;
            DeviceBuffer& buffer = sets_[1 - live_][index];
            Result<std::size_t> bytes =
                bytes_of(shape_of(parts_.context->getTensorShape(present.name.c_str())), present.dtype);
            if (!bytes) return bytes.error();
            if (*bytes > buffer.size()) return refusal(present.name + " is longer than the cache");
            Status done = set_address(present.name, buffer);
            if (!done) return done;
        }
        return Done{};
    }

    // Enqueue, and bring the last token's logits to the host: nothing else of the outputs leaves the GPU.
    Result<std::vector<float>> run() {
        const Port& port = parts_.signature.logits;
        const Shape shape = shape_of(parts_.context->getTensorShape(port.name.c_str()));
        Result<std::size_t> bytes = bytes_of(shape, port.dtype);
        if (!bytes) return bytes.error();
        if (shape.empty() || *bytes == 0) return refusal(port.name + " is empty");
        Status done = logits_.reserve(*bytes);
        if (!done) return done.error();
        done = set_address(port.name, logits_);
        if (!done) return done.error();
        if (!parts_.context->enqueueV3(parts_.stream.get())) return refusal("it did not start");

        const auto vocabulary = static_cast<std::size_t>(shape.back());
        Bytes last(vocabulary * size_of(port.dtype));
        done = check_cuda(cudaMemcpyAsync(last.data(), static_cast<std::byte*>(logits_.data()) + *bytes - last.size(),
                                          last.size(), cudaMemcpyDeviceToHost, parts_.stream.get()),
                          "copy logits from the GPU");
        if (!done) return done.error();
        done = check_cuda(cudaStreamSynchronize(parts_.stream.get()), "finish the step");
        if (!done) return done.error();
        return decode(last.data(), vocabulary, port.dtype);
    }

    Status set_input(const std::string& name, const Shape& shape, const DeviceBuffer& buffer) {
        if (!parts_.context->setInputShape(name.c_str(), dims_of(shape))) {
            return refusal(name + " cannot be " + text_of(shape));
        }
        return set_address(name, buffer);
    }

    Status set_address(const std::string& name, const DeviceBuffer& buffer) {
        if (parts_.context->setTensorAddress(name.c_str(), buffer.data())) return Done{};
        return refusal(name + " does not take its buffer");
    }

    Error refusal(const std::string& what) const {
        const std::string& said = parts_.loaded.log->last_error();
        return failed(parts_.file + ": " + what + (said.empty() ? "" : " (" + said + ")"));
    }

    // The buffers outlive the context, which is told their addresses.
    std::array<std::vector<DeviceBuffer>, 2> sets_;  // The cache before and after a step, by turns.
    std::vector<DeviceBuffer> feeds_;
    DeviceBuffer logits_;
    Parts parts_;
    std::size_t live_ = 0;  // Which set holds the cache.
    std::optional<std::size_t> profile_;
    std::int64_t past_ = 0;
};

}  // namespace

const char* runtime_name() { return kFlavour; }

Result<std::unique_ptr<Runtime>> open_runtime(const Bundle& bundle, const std::string& name) {
    Result<EngineEntry> entry = bundle.engine(kFlavour, name);
    if (!entry) return entry.error();
    Status runnable = check_runnable(*entry);
    if (!runnable) return runnable.error();
    Result<std::filesystem::path> file = bundle.file(entry->file);
    if (!file) return file.error();
    Result<Decoding> decoding = bundle.decoding();
    if (!decoding) return decoding.error();
    const std::string where = file->string();
    Result<Signature> signature = make_signature(*decoding, entry->inputs, entry->outputs, where);
    if (!signature) return signature.error();
    Result<ProfileTable> profiles = ProfileTable::make(entry->profiles, *signature, where);
    if (!profiles) return profiles.error();
    Result<LoadedEngine> loaded = load_engine(*file, *entry, *signature);
    if (!loaded) return loaded.error();
    Result<Stream> stream = Stream::create();
    if (!stream) return stream.error();
    std::unique_ptr<nvinfer1::IExecutionContext> context(loaded->engine->createExecutionContext());
    if (!context) return failed(where + ": no execution context (" + loaded->log->last_error() + ")");
    return std::unique_ptr<Runtime>(
        std::make_unique<EngineDecoder>(Parts{file->filename().string(), *std::move(signature), *std::move(profiles),
                                              *std::move(loaded), *std::move(stream), std::move(context)}));
}

}  // namespace gatenorm
