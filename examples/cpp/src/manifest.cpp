#include "manifest.h"

#include <fstream>
#include <sstream>

#include "json_reader.h"
#include "sha256.h"

namespace gatenorm {
namespace {

constexpr std::int64_t kSchema = 1;
// A manifest of some hundred layers is well under a megabyte.
constexpr std::uintmax_t kMostBytes = std::uintmax_t{64} << 20;

std::string text_at(const JsonReader& json) { return json.text(); }
std::int64_t id_at(const JsonReader& json) { return json.number_from(0); }

DType dtype_at(const JsonReader& json) {
    Result<DType> dtype = dtype_named(json.text());
    if (!dtype) json.misfit("is " + json.text() + ", which is no element type that these programs know");
    return *dtype;
}

Length length_at(const JsonReader& json) {
    if (json.is_number()) return {json.number_from(0), ""};
    return {std::nullopt, json.text()};
}

TensorSpec tensor_at(const JsonReader& json) {
    return {json["name"].text(), dtype_at(json["dtype"]), json["shape"].each(length_at)};
}

CacheTensor cache_at(const JsonReader& json) {
    CacheTensor cache{json["past"].text(), json["present"].text(), json["shape"].each(length_at),
                      static_cast<std::size_t>(json["batch_axis"].number_from(0)),
                      static_cast<std::size_t>(json["length_axis"].number_from(0))};
    for (const char* axis : {"batch_axis", "length_axis"}) {
        if (static_cast<std::size_t>(json[axis].number()) >= cache.shape.size()) {
            json[axis].misfit("is no axis of its shape");
        }
    }
    if (cache.batch_axis == cache.length_axis) json["length_axis"].misfit("is the batch axis too");
    return cache;
}

Decoding decoding_at(const JsonReader& json) {
    Decoding decoding;
    decoding.token_input = json["token_input"].text();
    decoding.logits_output = json["logits_output"].text();
    decoding.mask_input = json["mask_input"].unless_null(text_at);
    decoding.position_input = json["position_input"].unless_null(text_at);
    decoding.caches = json["caches"].each(cache_at);
    decoding.vocab_size = json["vocab_size"].number_from(1);
    decoding.max_positions = json["max_positions"].unless_null(id_at);
    decoding.eos_token_ids = json["eos_token_ids"].each(id_at);
    return decoding;
}

Shape shape_at(const JsonReader& json) { return json.each(id_at); }

ProfileBounds bounds_at(const JsonReader& json) {
    ProfileBounds bounds{json["input"].text(), shape_at(json["min"]), shape_at(json["opt"]), shape_at(json["max"])};
    if (bounds.min.size() != bounds.max.size() || bounds.opt.size() != bounds.max.size()) {
        json.misfit("has bounds of different ranks");
    }
    return bounds;
}

Profile profile_at(const JsonReader& json) { return {json["name"].text(), json["bounds"].each(bounds_at)}; }

GraphEntry graph_at(const JsonReader& json) {
    return {json["file"].text(), json["inputs"].each(tensor_at), json["outputs"].each(tensor_at)};
}

EngineEntry engine_at(const JsonReader& json) {
    return {json["file"].text(),
            json["flavour"].text(),
            json["flavour_version"].text(),
            json["capabilities"].each(text_at),
            json["profiles"].each(profile_at),
            json["inputs"].each(tensor_at),
            json["outputs"].each(tensor_at)};
}

FileEntry file_at(const JsonReader& json) {
    return {json["name"].text(), json["role"].text(), json["sha256"].text(),
            static_cast<std::uint64_t>(json["bytes"].number_from(0))};
}

Manifest manifest_at(const JsonReader& json) {
    if (json["kind"].text() != "bundle") json["kind"].misfit("is to be bundle; gatenorm bundle makes one");
    const std::int64_t schema = json["schema"].number();
    if (schema != kSchema) {
        json["schema"].misfit("is " + std::to_string(schema) + ", and these programs read " + std::to_string(kSchema));
    }
    Manifest manifest;
    manifest.name = json["name"].text();
    manifest.n_layers = json["n_layers"].unless_null(id_at);
    manifest.n_dropped = json["dropped"].unless_null(shape_at).value_or(Shape{}).size();
    manifest.graph = json["graph"].unless_null(graph_at);
    manifest.engines = json["engines"].each(engine_at);
    manifest.decoding = json["decoding"].unless_null(decoding_at);
    manifest.files = json["files"].each(file_at);
    return manifest;
}

// The manifest's seal is the sha256 of its own file with zeros in the seal's place.
bool seal_holds(std::string text, const std::string& seal) {
    const std::string field = "\"seal\": \"" + seal + "\"";
    const std::size_t at = text.find(field);
    if (seal.empty() || at == std::string::npos) return false;
    text.replace(at + field.size() - seal.size() - 1, seal.size(), seal.size(), '0');
    return sha256_of(text) == seal;
}

}  // namespace

Result<Manifest> read_manifest(const std::filesystem::path& file) {
    std::error_code error;
    const std::uintmax_t size = std::filesystem::file_size(file, error);
    if (error) return bad_input(file.string() + ": cannot be read (" + error.message() + "); name a bundle's folder");
    if (size > kMostBytes) return bad_input(file.string() + ": is too large for a manifest");
    std::ifstream stream(file, std::ios::binary);
    std::stringstream text;
    text << stream.rdbuf();
    if (!stream) return bad_input(file.string() + ": cannot be read");
    const nlohmann::json json = nlohmann::json::parse(text.str(), nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded()) return bad_input(file.string() + ": is no JSON; make the bundle again");
    try {
        const JsonReader reader(json, "manifest");
        Manifest manifest = manifest_at(reader);
        if (!seal_holds(text.str(), reader["seal"].text())) {
            return tampered(file.string() + ": was changed since it was written; copy the bundle again");
        }
        return manifest;
    } catch (const Misfit& misfit) {
        return bad_input(file.string() + ": " + misfit.message);
    }
}

}  // namespace gatenorm
