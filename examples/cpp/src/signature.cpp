#include "signature.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace gatenorm {
namespace {

constexpr std::int64_t kLogitsBytes = std::int64_t{256} << 20;

Result<TensorSpec> spec_named(const std::vector<TensorSpec>& specs, const std::string& name, const std::string& where) {
    const auto found = std::find_if(specs.begin(), specs.end(), [&](const TensorSpec& s) { return s.name == name; });
    if (found == specs.end()) return bad_input(where + ": has no tensor " + name + ", which the manifest decodes with");
    return *found;
}

Status check_plain(const TensorSpec& spec, const std::string& where) {
    if (spec.shape.size() != 2) return bad_input(where + ": input " + spec.name + " is to be [batch, length]");
    if (spec.shape[0].fixed.value_or(1) != 1) {
        return refused(where + ": input " + spec.name + " has a fixed batch of " +
                       std::to_string(*spec.shape[0].fixed) + ", and these programs decode one sequence");
    }
    return Done{};
}

Status check_cache(const CacheTensor& cache, const std::string& where) {
    for (std::size_t axis = 0; axis < cache.shape.size(); ++axis) {
        const bool open = axis == cache.length_axis || axis == cache.batch_axis;
        if (!open && !cache.shape[axis].fixed) {
            return bad_input(where + ": cache " + cache.past + " has a length of no known size, " +
                             cache.shape[axis].name);
        }
    }
    if (cache.shape[cache.length_axis].fixed) {
        return refused(where + ": cache " + cache.past + " has a fixed length, and these programs let it grow");
    }
    if (cache.shape[cache.batch_axis].fixed.value_or(1) != 1) {
        return refused(where + ": cache " + cache.past + " has a fixed batch, and these programs decode one sequence");
    }
    return Done{};
}

// Every input has to be given something; one that the manifest does not speak of cannot be.
Status check_all_known(const Signature& signature, const std::vector<TensorSpec>& inputs, const std::string& where) {
    std::set<std::string> known;
    for (const InputShape& input : input_shapes(signature, 1, 0)) known.insert(input.name);
    for (const TensorSpec& input : inputs) {
        if (!known.count(input.name))
            return bad_input(where + ": the manifest does not say what input " + input.name + " is for");
    }
    return Done{};
}

Result<std::optional<Port>> optional_port(const std::optional<std::string>& name, const std::vector<TensorSpec>& inputs,
                                          const std::string& where) {
    if (!name) return std::optional<Port>{};
    Result<TensorSpec> spec = spec_named(inputs, *name, where);
    if (!spec) return spec.error();
    Status plain = check_plain(*spec, where);
    if (!plain) return plain.error();
    return std::optional<Port>{Port{spec->name, spec->dtype}};
}

Result<CachePort> cache_port(const CacheTensor& cache, const std::vector<TensorSpec>& inputs,
                             const std::vector<TensorSpec>& outputs, const std::string& where) {
    Status checked = check_cache(cache, where);
    if (!checked) return checked.error();
    Result<TensorSpec> past = spec_named(inputs, cache.past, where);
    if (!past) return past.error();
    Result<TensorSpec> present = spec_named(outputs, cache.present, where);
    if (!present) return present.error();
    if (past->dtype != present->dtype) {
        return bad_input(where + ": " + past->name + " is " + name_of(past->dtype) + " and " + present->name + " is " +
                         name_of(present->dtype) + "; a cache goes in as it comes out");
    }
    return CachePort{
        {past->name, past->dtype}, {present->name, present->dtype}, cache.shape, cache.batch_axis, cache.length_axis};
}

Status check_port(const Port& port, const std::vector<FoundTensor>& found, const std::string& where) {
    const auto tensor =
        std::find_if(found.begin(), found.end(), [&](const FoundTensor& t) { return t.names.count(port.name) > 0; });
    if (tensor == found.end()) return bad_input(where + ": has no tensor " + port.name + ", which the manifest names");
    if (tensor->dtype != name_of(port.dtype)) {
        return bad_input(where + ": " + port.name + " is " + tensor->dtype + " in the file, and " +
                         name_of(port.dtype) + " by the manifest");
    }
    return Done{};
}

}  // namespace

Shape CachePort::past_shape(std::int64_t length) const {
    Shape found;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        found.push_back(axis == length_axis ? length : shape[axis].fixed.value_or(1));
    }
    return found;
}

Result<Signature> make_signature(const Decoding& decoding, const std::vector<TensorSpec>& inputs,
                                 const std::vector<TensorSpec>& outputs, const std::string& where) {
    Signature signature;
    Result<TensorSpec> tokens = spec_named(inputs, decoding.token_input, where);
    if (!tokens) return tokens.error();
    Status plain = check_plain(*tokens, where);
    if (!plain) return plain.error();
    signature.tokens = {tokens->name, tokens->dtype};
    if (tokens->shape[1].fixed.value_or(1) != 1) {
        return refused(where + ": takes " + std::to_string(*tokens->shape[1].fixed) +
                       " tokens at every step, and decoding needs steps of one");
    }
    signature.single_steps = tokens->shape[1].fixed.has_value();
    Result<TensorSpec> logits = spec_named(outputs, decoding.logits_output, where);
    if (!logits) return logits.error();
    signature.logits = {logits->name, logits->dtype};

    Result<std::optional<Port>> mask = optional_port(decoding.mask_input, inputs, where);
    if (!mask) return mask.error();
    signature.mask = *mask;
    Result<std::optional<Port>> positions = optional_port(decoding.position_input, inputs, where);
    if (!positions) return positions.error();
    signature.positions = *positions;

    for (const CacheTensor& cache : decoding.caches) {
        Result<CachePort> port = cache_port(cache, inputs, outputs, where);
        if (!port) return port.error();
        signature.caches.push_back(*port);
    }
    Status known = check_all_known(signature, inputs, where);
    if (!known) return known.error();
    return signature;
}

Status check_found(const Signature& signature, const std::vector<FoundTensor>& inputs,
                   const std::vector<FoundTensor>& outputs, const std::string& where) {
    std::vector<Port> fed{signature.tokens}, read{signature.logits};
    for (const std::optional<Port>& port : {signature.mask, signature.positions}) {
        if (port) fed.push_back(*port);
    }
    for (const CachePort& cache : signature.caches) {
        fed.push_back(cache.past);
        read.push_back(cache.present);
    }
    if (fed.size() != inputs.size()) {
        return bad_input(where + ": has " + std::to_string(inputs.size()) + " inputs, and " +
                         std::to_string(fed.size()) + " by the manifest");
    }
    for (const Port& port : fed) {
        Status checked = check_port(port, inputs, where);
        if (!checked) return checked;
    }
    for (const Port& port : read) {
        Status checked = check_port(port, outputs, where);
        if (!checked) return checked;
    }
    return Done{};
}

Result<std::vector<Feed>> make_feeds(const Signature& signature, const std::vector<std::int64_t>& tokens,
                                     std::int64_t past) {
    const auto step = static_cast<std::int64_t>(tokens.size());
    std::vector<std::int64_t> positions(tokens.size());
    std::iota(positions.begin(), positions.end(), past);
    struct Row {
        std::optional<Port> port;
        std::vector<std::int64_t> values;
    };
    const Row rows[] = {{signature.tokens, tokens},
                        {signature.mask, std::vector<std::int64_t>(static_cast<std::size_t>(past + step), 1)},
                        {signature.positions, positions}};
    std::vector<Feed> feeds;
    for (const Row& row : rows) {
        if (!row.port) continue;
        Result<Bytes> bytes = encode(row.values, row.port->dtype);
        if (!bytes) return bad_input("input " + row.port->name + ": " + bytes.error().message);
        feeds.push_back({*row.port, {1, static_cast<std::int64_t>(row.values.size())}, *std::move(bytes)});
    }
    return feeds;
}

std::vector<InputShape> input_shapes(const Signature& signature, std::int64_t step, std::int64_t past) {
    std::vector<InputShape> shapes{{signature.tokens.name, {1, step}}};
    if (signature.mask) shapes.push_back({signature.mask->name, {1, past + step}});
    if (signature.positions) shapes.push_back({signature.positions->name, {1, step}});
    for (const CachePort& cache : signature.caches) shapes.push_back({cache.past.name, cache.past_shape(past)});
    return shapes;
}

std::int64_t longest_step_of(const Signature& signature, const Decoding& decoding) {
    if (signature.single_steps) return 1;
    // Without a cache the whole text is fed at every step.
    if (signature.caches.empty()) return std::numeric_limits<std::int64_t>::max();
    return std::max<std::int64_t>(1, kLogitsBytes / 4 / decoding.vocab_size);
}

}  // namespace gatenorm
