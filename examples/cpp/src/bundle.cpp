#include "bundle.h"

#include <algorithm>

#include "sha256.h"

namespace gatenorm {
namespace {

namespace fs = std::filesystem;

bool stays_inside(const std::string& name) {
    const fs::path path(name);
    if (name.empty() || path.is_absolute() || path.has_root_name()) return false;
    return std::none_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".."; });
}

bool is_below(const fs::path& path, const fs::path& folder) {
    return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

// Whether an engine's file is meant by a name without its folder or its ending.
bool is_called(const std::string& file, const std::string& name) {
    const fs::path path(file);
    return name == file || name == path.filename().string() || name == path.stem().string();
}

std::string list_of(const std::vector<EngineEntry>& engines) {
    std::string text;
    for (const EngineEntry& engine : engines) {
        text += (text.empty() ? "" : ", ") + engine.file + " (" + engine.flavour + " " + engine.flavour_version + ")";
    }
    return text.empty() ? "none" : text;
}

}  // namespace

Result<Bundle> open_bundle(const fs::path& folder, bool digests) {
    Result<Manifest> manifest = read_manifest(folder / "manifest.json");
    if (!manifest) return manifest.error();
    return Bundle{folder, *std::move(manifest), digests};
}

Result<fs::path> Bundle::file(const std::string& name) const {
    if (!stays_inside(name)) return bad_input(folder.string() + ": the manifest names a file outside of it: " + name);
    const auto& files = manifest.files;
    const auto entry = std::find_if(files.begin(), files.end(), [&](const FileEntry& f) { return f.name == name; });
    if (entry == files.end()) return bad_input(folder.string() + ": the manifest lists no file " + name);

    const fs::path path = folder / fs::path(name);
    std::error_code error;
    const fs::path real = fs::canonical(path, error);
    if (error) return bad_input(path.string() + ": cannot be read (" + error.message() + ")");
    if (!is_below(real, fs::canonical(folder, error))) {
        return bad_input(path.string() + ": is a link out of the bundle's folder");
    }
    const std::uintmax_t size = fs::is_regular_file(real, error) ? fs::file_size(real, error) : 0;
    if (error || !fs::is_regular_file(real, error)) return bad_input(path.string() + ": is no file");
    if (size != entry->bytes) {
        return tampered(path.string() + ": has " + std::to_string(size) + " bytes, and " +
                        std::to_string(entry->bytes) + " by the manifest; copy the bundle again");
    }
    if (digests) {
        Result<std::string> digest = sha256_of(real);
        if (!digest) return digest.error();
        if (*digest != entry->sha256) {
            return tampered(path.string() + ": its sha256 is " + digest->substr(0, 12) + ", and " +
                            entry->sha256.substr(0, 12) + " by the manifest; copy the bundle again");
        }
    }
    return path;
}

Result<fs::path> Bundle::graph_file() const {
    if (!manifest.graph) return bad_input(folder.string() + ": the bundle holds no graph, only engines");
    for (const FileEntry& entry : manifest.files) {
        if (entry.role != "weights") continue;
        Result<fs::path> weights = file(entry.name);
        if (!weights) return weights.error();
    }
    return file(manifest.graph->file);
}

Result<Decoding> Bundle::decoding() const {
    if (!manifest.decoding) return bad_input(folder.string() + ": the bundle holds no decoder over tokens");
    return *manifest.decoding;
}

Result<EngineEntry> Bundle::engine(const std::string& flavour, const std::string& name) const {
    std::vector<EngineEntry> found;
    for (const EngineEntry& engine : manifest.engines) {
        if (name.empty() ? engine.flavour == flavour : is_called(engine.file, name)) found.push_back(engine);
    }
    const std::string has = "; it has " + list_of(manifest.engines);
    if (found.empty()) {
        return bad_input(folder.string() + ": the bundle has no engine " + (name.empty() ? "of " + flavour : name) +
                         has);
    }
    if (found.size() > 1) return bad_input(folder.string() + ": name one engine with --engine" + has);
    if (found[0].flavour != flavour) {
        return refused(found[0].file + ": is an engine of " + found[0].flavour + ", and this program runs those of " +
                       flavour);
    }
    return found[0];
}

}  // namespace gatenorm
