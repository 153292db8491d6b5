// The command line of the programs.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "result.h"

namespace gatenorm {

struct Options {
    std::string bundle;
    std::string prompt_ids;  // "1,2,3", or "-" for standard input
    std::int64_t max_tokens = 32;
    std::string engine;
    bool digests = true;
    bool json = false;
    bool quiet = false;
    bool help = false;
};

// argv without the program's name.
Result<Options> read_options(const std::vector<std::string>& arguments);

// Token ids with commas or white space between them.
Result<std::vector<std::int64_t>> read_ids(const std::string& text);

std::string help_text(const std::string& program);

}  // namespace gatenorm
