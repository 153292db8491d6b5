// SHA-256, as FIPS 180-4 defines it.
#pragma once

#include <filesystem>
#include <string>

#include "result.h"

namespace gatenorm {

// Digests in lower-case hexadecimal digits.
std::string sha256_of(const std::string& bytes);
Result<std::string> sha256_of(const std::filesystem::path& file);

}  // namespace gatenorm
