// The bundle's manifest.json, as far as decoding needs it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "result.h"
#include "tensor.h"

namespace gatenorm {

// One length of a tensor: a number, or a name where it is decided at each call.
struct Length {
    std::optional<std::int64_t> fixed;
    std::string name;
};

struct TensorSpec {
    std::string name;
    DType dtype;
    std::vector<Length> shape;
};

// One tensor of the KV cache: what goes in as `past` comes out as `present`, longer by the step.
struct CacheTensor {
    std::string past, present;
    std::vector<Length> shape;  // of `past`
    std::size_t batch_axis, length_axis;
};

struct Decoding {
    std::string token_input, logits_output;
    std::optional<std::string> mask_input, position_input;
    std::vector<CacheTensor> caches;
    std::int64_t vocab_size;
    std::optional<std::int64_t> max_positions;
    std::vector<std::int64_t> eos_token_ids;
};

struct ProfileBounds {
    std::string input;
    Shape min, opt, max;
};

struct Profile {
    std::string name;
    std::vector<ProfileBounds> bounds;
};

struct GraphEntry {
    std::string file;
    std::vector<TensorSpec> inputs, outputs;
};

struct EngineEntry {
    std::string file, flavour, flavour_version;
    std::vector<std::string> capabilities;
    std::vector<Profile> profiles;
    std::vector<TensorSpec> inputs, outputs;
};

struct FileEntry {
    std::string name, role, sha256;
    std::uint64_t bytes;
};

struct Manifest {
    std::string name;
    std::optional<std::int64_t> n_layers;
    std::size_t n_dropped;
    std::optional<GraphEntry> graph;
    std::vector<EngineEntry> engines;
    std::optional<Decoding> decoding;
    std::vector<FileEntry> files;
};

Result<Manifest> read_manifest(const std::filesystem::path& file);

}  // namespace gatenorm
