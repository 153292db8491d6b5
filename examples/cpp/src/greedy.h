// The greedy decode loop, the same for every runtime.
#pragma once

#include <cstdint>
#include <vector>

#include "manifest.h"
#include "runtime.h"

namespace gatenorm {

struct Request {
    std::vector<std::int64_t> prompt;
    std::int64_t max_tokens;
};

struct Generation {
    std::vector<std::int64_t> tokens;  // Without the prompt; an end token is the last of them.
    bool ended = false;                // By an end token, and not by the limit.
    double prefill_seconds = 0;        // The prompt, up to the first new token.
    double decode_seconds = 0;         // All further tokens.
};

// The most likely token again and again, until an end token or `max_tokens`. Of equal logits the lower id wins.
Result<Generation> decode_greedily(Runtime& runtime, const Decoding& decoding, const Request& request);

}  // namespace gatenorm
