// What the decode loop needs of a runtime. Each program is linked with one implementation of it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bundle.h"
#include "result.h"

namespace gatenorm {

// A loaded decoder, with the KV cache of one sequence inside.
class Runtime {
public:
    virtual ~Runtime() = default;
    Runtime() = default;
    Runtime(const Runtime&) = delete;
    Runtime& operator=(const Runtime&) = delete;

    // What runs what, such as "OpenVINO 2026.4.1, model.onnx".
    virtual std::string description() const = 0;

    // The most tokens that one step takes behind a cache of `past`; 0 where it takes none.
    virtual std::int64_t longest_step(std::int64_t past) const = 0;

    // Forget the cache, and make room for a sequence of `most` tokens.
    virtual Status begin(std::int64_t most) = 0;

    // Run `tokens` behind the cache, which then holds them too. The result is the logits of the last one.
    virtual Result<std::vector<float>> step(const std::vector<std::int64_t>& tokens) = 0;
};

// The name of the runtime that this program was linked with, for its help.
const char* runtime_name();

// Load the bundle's graph, or its engine of the name that the user gave ("": the only one).
Result<std::unique_ptr<Runtime>> open_runtime(const Bundle& bundle, const std::string& engine);

}  // namespace gatenorm
