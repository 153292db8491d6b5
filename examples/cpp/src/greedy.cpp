#include "greedy.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <string>

namespace gatenorm {
namespace {

using Tokens = std::vector<std::int64_t>;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// The next piece of `rest` tokens behind a cache of `past`. The short piece comes first: a profile that takes a whole
// piece takes it up to the end of its context, but only onto a cache that leaves room for one.
std::int64_t next_piece(const Runtime& runtime, std::int64_t past, std::int64_t rest) {
    const std::int64_t longest = runtime.longest_step(past);
    if (longest <= 0) return 0;
    return rest % longest ? rest % longest : longest;
}

// How many tokens of prompt and answer the runtime takes, at most `wanted`.
std::int64_t reach(const Runtime& runtime, bool cached, std::int64_t prompt, std::int64_t wanted) {
    if (!cached) return std::min(runtime.longest_step(0), wanted);
    std::int64_t past = 0;
    while (past < prompt) {
        const std::int64_t piece = next_piece(runtime, past, prompt - past);
        if (piece == 0) return past;
        past += piece;
    }
    while (past < wanted && runtime.longest_step(past) > 0) ++past;
    return past;
}

Status check(const Runtime& runtime, const Decoding& decoding, const Request& request) {
    if (request.prompt.empty()) return refused("the prompt has no tokens; begin with the model's first token");
    for (const std::int64_t token : request.prompt) {
        if (token < 0 || token >= decoding.vocab_size) {
            return refused("the prompt has token " + std::to_string(token) + ", and the model's vocabulary has " +
                           std::to_string(decoding.vocab_size));
        }
    }
    // The last new token is never fed.
    const auto prompt = static_cast<std::int64_t>(request.prompt.size());
    if (request.max_tokens > std::int64_t{1} << 32) return refused("--max-tokens is too large");
    const std::int64_t fed = prompt + request.max_tokens - 1;
    const std::string asked =
        "a prompt of " + std::to_string(prompt) + " tokens and " + std::to_string(request.max_tokens) + " new ones";
    if (decoding.max_positions && fed > *decoding.max_positions) {
        return refused(asked + " are too long: the model has " + std::to_string(*decoding.max_positions) +
                       " positions");
    }
    const std::int64_t taken = reach(runtime, !decoding.caches.empty(), prompt, fed);
    if (taken < fed) {
        return refused(asked + " are too long: " + runtime.description() + " takes " + std::to_string(taken) +
                       " tokens in all; an engine is built for more with --prompt and --context");
    }
    return Done{};
}

// Feed the prompt in as few pieces as the runtime takes; the logits of its last token.
Result<std::vector<float>> prefill(Runtime& runtime, const Tokens& prompt) {
    const auto length = static_cast<std::int64_t>(prompt.size());
    Result<std::vector<float>> logits = failed("nothing was fed");
    for (std::int64_t past = 0; past < length;) {
        const std::int64_t piece = next_piece(runtime, past, length - past);
        logits = runtime.step(Tokens(prompt.begin() + past, prompt.begin() + past + piece));
        if (!logits) return logits;
        past += piece;
    }
    return logits;
}

Result<std::int64_t> most_likely(const std::vector<float>& logits) {
    for (const float value : logits) {
        if (std::isnan(value)) return failed("the logits are not numbers (NaN); the precision may be too low");
    }
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
}

// Without a cache every step is a prompt: all that there is so far.
Result<std::vector<float>> step_from(Runtime& runtime, bool cached, const Tokens& text) {
    if (cached) return runtime.step({text.back()});
    Status begun = runtime.begin(static_cast<std::int64_t>(text.size()));
    if (!begun) return begun.error();
    return runtime.step(text);
}

}  // namespace

Result<Generation> decode_greedily(Runtime& runtime, const Decoding& decoding, const Request& request) {
    Status checked = check(runtime, decoding, request);
    if (!checked) return checked.error();
    Status begun = runtime.begin(static_cast<std::int64_t>(request.prompt.size()) + request.max_tokens - 1);
    if (!begun) return begun.error();

    const bool cached = !decoding.caches.empty();
    const Tokens& ends = decoding.eos_token_ids;
    Generation generation;
    Tokens text = request.prompt;
    Clock::time_point start = Clock::now();
    Result<std::vector<float>> logits = cached ? prefill(runtime, text) : runtime.step(text);
    while (true) {
        if (!logits) return logits.error();
        Result<std::int64_t> token = most_likely(*logits);
        if (!token) return token.error();
        (generation.tokens.empty() ? generation.prefill_seconds : generation.decode_seconds) += seconds_since(start);
        generation.tokens.push_back(*token);
        generation.ended = std::find(ends.begin(), ends.end(), *token) != ends.end();
        if (generation.ended || static_cast<std::int64_t>(generation.tokens.size()) >= request.max_tokens) break;
        text.push_back(*token);
        start = Clock::now();
        logits = step_from(runtime, cached, text);
    }
    return generation;
}

}  // namespace gatenorm
