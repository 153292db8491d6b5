// One program per runtime: open a bundle, decode greedily, print the ids; timing goes to stderr.
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "bundle.h"
#include "greedy.h"
#include "options.h"
#include "runtime.h"

namespace gatenorm {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

struct Outcome {
    std::string runtime;
    std::size_t n_prompt;
    Generation generation;
    double load_seconds;  // Checks of the files and the loading of the model.
};

Result<std::vector<std::int64_t>> prompt_of(const Options& options) {
    if (options.prompt_ids != "-") return read_ids(options.prompt_ids);
    return read_ids({std::istreambuf_iterator<char>(std::cin), {}});
}

Result<Outcome> run(const Options& options) {
    Result<std::vector<std::int64_t>> prompt = prompt_of(options);
    if (!prompt) return prompt.error();
    const Clock::time_point start = Clock::now();
    Result<Bundle> bundle = open_bundle(options.bundle, options.digests);
    if (!bundle) return bundle.error();
    Result<Decoding> decoding = bundle->decoding();
    if (!decoding) return decoding.error();
    Result<std::unique_ptr<Runtime>> runtime = open_runtime(*bundle, options.engine);
    if (!runtime) return runtime.error();
    const double load_seconds = seconds_since(start);
    Result<Generation> generation = decode_greedily(**runtime, *decoding, {*prompt, options.max_tokens});
    if (!generation) return generation.error();
    return Outcome{(*runtime)->description(), prompt->size(), *std::move(generation), load_seconds};
}

void print_timing(const Outcome& outcome) {
    const Generation& generation = outcome.generation;
    const std::size_t steps = generation.tokens.size() - 1;
    std::fprintf(stderr, "%s\n", outcome.runtime.c_str());
    std::fprintf(stderr, "load     %9.1f ms\n", 1e3 * outcome.load_seconds);
    std::fprintf(stderr, "prefill  %9.1f ms  %zu tokens\n", 1e3 * generation.prefill_seconds, outcome.n_prompt);
    if (steps == 0) return;
    std::fprintf(stderr, "decode   %9.1f ms  %zu steps, %.2f ms each\n", 1e3 * generation.decode_seconds, steps,
                 1e3 * generation.decode_seconds / static_cast<double>(steps));
}

void print_result(const Outcome& outcome, bool json) {
    const Generation& generation = outcome.generation;
    if (json) {
        const nlohmann::ordered_json object = {{"tokens", generation.tokens},
                                               {"stopped", generation.ended ? "end token" : "length"},
                                               {"runtime", outcome.runtime},
                                               {"prompt_tokens", outcome.n_prompt},
                                               {"load_seconds", outcome.load_seconds},
                                               {"prefill_seconds", generation.prefill_seconds},
                                               {"decode_seconds", generation.decode_seconds}};
        std::cout << object.dump() << '\n';
        return;
    }
    for (std::size_t index = 0; index < generation.tokens.size(); ++index) {
        std::cout << (index ? "," : "") << generation.tokens[index];
    }
    std::cout << '\n';
}

int report(const std::string& program, const Error& error) {
    std::cerr << program << ": " << error.message << '\n';
    return static_cast<int>(error.code);
}

int main_of(const std::string& program, const std::vector<std::string>& arguments) {
    Result<Options> options = read_options(arguments);
    if (!options) return report(program, options.error());
    if (options->help) {
        std::cout << help_text(program);
        return 0;
    }
    Result<Outcome> outcome = run(*options);
    if (!outcome) return report(program, outcome.error());
    if (!options->quiet) print_timing(*outcome);
    print_result(*outcome, options->json);
    return 0;
}

}  // namespace
}  // namespace gatenorm

int main(int argc, char** argv) {
    const std::string program = std::filesystem::path(argc > 0 ? argv[0] : "gatenorm-decode").filename().string();
    return gatenorm::main_of(program, {argv + (argc > 0), argv + argc});
}
