#include "options.h"

#include <charconv>

#include "runtime.h"

namespace gatenorm {
namespace {

Error usage(std::string message) { return {ExitCode::usage, std::move(message) + "; --help shows how"}; }

Result<std::int64_t> whole_number(const std::string& text) {
    std::int64_t value = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, value);
    if (error != std::errc{} || stop != end) return usage("'" + text + "' is no whole number");
    return value;
}

// The options that stand alone.
bool* flag_named(Options& options, const std::string& name) {
    if (name == "--json") return &options.json;
    if (name == "--quiet") return &options.quiet;
    if (name == "--help") return &options.help;
    return nullptr;
}

// The options that are followed by a value.
std::string* text_named(Options& options, const std::string& name) {
    if (name == "--prompt-ids") return &options.prompt_ids;
    if (name == "--engine") return &options.engine;
    return nullptr;
}

Status take_value(Options& options, const std::string& name, const std::string& value) {
    if (std::string* text = text_named(options, name)) {
        *text = value;
        return Done{};
    }
    Result<std::int64_t> number = whole_number(value);
    if (!number) return number.error();
    if (*number < 1) return usage(name + " is to be 1 or more");
    options.max_tokens = *number;
    return Done{};
}

}  // namespace

Result<Options> read_options(const std::vector<std::string>& arguments) {
    Options options;
    for (std::size_t index = 0; index < arguments.size(); ++index) {
        const std::string& word = arguments[index];
        if (bool* flag = flag_named(options, word)) {
            *flag = true;
        } else if (word == "--no-digests") {
            options.digests = false;
        } else if (word == "--max-tokens" || text_named(options, word)) {
            if (++index == arguments.size()) return usage(word + " needs a value");
            Status taken = take_value(options, word, arguments[index]);
            if (!taken) return taken.error();
        } else if (word.size() > 1 && word[0] == '-') {
            return usage("no such option: " + word);
        } else if (options.bundle.empty()) {
            options.bundle = word;
        } else {
            return usage("one bundle at a time, and not " + word + " too");
        }
    }
    if (!options.help && options.bundle.empty()) return usage("no bundle is named");
    if (!options.help && options.prompt_ids.empty()) return usage("no prompt is given; --prompt-ids 1,2,3");
    return options;
}

Result<std::vector<std::int64_t>> read_ids(const std::string& text) {
    std::vector<std::int64_t> ids;
    const char* between = ", \t\r\n";
    for (std::size_t start = text.find_first_not_of(between); start != std::string::npos;) {
        const std::size_t stop = text.find_first_of(between, start);
        Result<std::int64_t> id = whole_number(text.substr(start, stop - start));
        if (!id) return id.error();
        ids.push_back(*id);
        start = text.find_first_not_of(between, stop);
    }
    return ids;
}

std::string help_text(const std::string& program) {
    return "usage: " + program +
           " BUNDLE --prompt-ids 1,2,3 [options]\n"
           "\n"
           "Decode greedily on " +
           runtime_name() +
           " from a bundle that gatenorm bundle made. Prints the new tokens' ids.\n"
           "\n"
           "  --prompt-ids IDS   the prompt's token ids; - reads them from standard input\n"
           "  --max-tokens N     new tokens at most (32); an end token of the model stops earlier\n"
           "  --engine NAME      which engine, where the bundle has several of this runtime\n"
           "  --no-digests       check sizes only, not sha256\n"
           "  --json             one JSON object instead of ids\n"
           "  --quiet            no timing on stderr\n"
           "\n"
           "exit codes: 0 done, 1 the runtime failed, 2 wrong usage, 3 a file is missing, damaged or does not fit the\n"
           "manifest, 5 refused (another version or GPU, a prompt that is too long), 13 a size or digest is another\n";
}

}  // namespace gatenorm
