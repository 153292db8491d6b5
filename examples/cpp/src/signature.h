// The tensors of one graph or engine, sorted by what they are for, and what a step feeds them.
#pragma once

#include <optional>
#include <set>
#include <string>
#include <vector>

#include "manifest.h"

namespace gatenorm {

struct Port {
    std::string name;
    DType dtype;
};

struct CachePort {
    Port past, present;
    std::vector<Length> shape;
    std::size_t batch_axis, length_axis;

    // The shape of `past` for one sequence of `length` tokens.
    Shape past_shape(std::int64_t length) const;
};

struct Signature {
    Port tokens, logits;
    std::optional<Port> mask, positions;
    std::vector<CachePort> caches;
    bool single_steps = false;  // The graph takes one token at a time.
};

// One input of a step beside the cache, as bytes.
struct Feed {
    Port port;
    Shape shape;
    Bytes bytes;
};

// An input of a step and its shape.
struct InputShape {
    std::string name;
    Shape shape;
};

// Hold a graph's or engine's tensors against the manifest's account of decoding.
Result<Signature> make_signature(const Decoding& decoding, const std::vector<TensorSpec>& inputs,
                                 const std::vector<TensorSpec>& outputs, const std::string& where);

// A tensor as a runtime found it in the file; some runtimes give a tensor several names.
struct FoundTensor {
    std::set<std::string> names;
    std::string dtype;
};

// Hold what a runtime found against the signature, for inputs are filled and outputs are read by the manifest's types.
Status check_found(const Signature& signature, const std::vector<FoundTensor>& inputs,
                   const std::vector<FoundTensor>& outputs, const std::string& where);

// Tokens, mask and positions for `tokens` behind a cache of `past`.
Result<std::vector<Feed>> make_feeds(const Signature& signature, const std::vector<std::int64_t>& tokens,
                                     std::int64_t past);

// The shapes of all inputs of a step of `step` tokens behind a cache of `past`.
std::vector<InputShape> input_shapes(const Signature& signature, std::int64_t step, std::int64_t past);

// The most tokens that one call of a graph is given, so that its logits stay a moderate size.
std::int64_t longest_step_of(const Signature& signature, const Decoding& decoding);

}  // namespace gatenorm
