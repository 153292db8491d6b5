// A bundle's folder: its manifest, and files that are held against it before anything loads them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "manifest.h"

namespace gatenorm {

struct Bundle {
    std::filesystem::path folder;
    Manifest manifest;
    bool digests;  // Whether files are also held against their sha256, and not only against their size.

    // The file of that name, if it lies inside the folder and is the one that the manifest describes.
    Result<std::filesystem::path> file(const std::string& name) const;

    // The graph and the weights beside it.
    Result<std::filesystem::path> graph_file() const;

    // What decoding needs to know; an error for a bundle of another kind of model.
    Result<Decoding> decoding() const;

    // The only engine of a flavour, or the one that is named: "pruned", "pruned.engine", "engines/pruned.engine".
    Result<EngineEntry> engine(const std::string& flavour, const std::string& name) const;
};

Result<Bundle> open_bundle(const std::filesystem::path& folder, bool digests);

}  // namespace gatenorm
