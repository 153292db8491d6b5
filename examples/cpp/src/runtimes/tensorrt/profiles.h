// Which of an engine's optimisation profiles takes a step.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "signature.h"

namespace gatenorm {

struct Range {
    std::int64_t min = 0;
    std::int64_t max = std::numeric_limits<std::int64_t>::max();

    bool holds(std::int64_t value) const { return min <= value && value <= max; }
};

class ProfileTable {
public:
    // Hold every profile against the signature, and keep what it says of one sequence.
    static Result<ProfileTable> make(const std::vector<Profile>& profiles, const Signature& signature,
                                     const std::string& where);

    // Of the profiles that take the step, the one that was tuned for the nearest number of tokens.
    std::optional<std::size_t> choose(std::int64_t step, std::int64_t past) const;

    // The most tokens that any profile takes behind a cache of `past`; 0: none takes one.
    std::int64_t longest_step(std::int64_t past) const;

private:
    // What a profile admits, in tokens.
    struct Row {
        Range step, past, total;  // `total` is the length of the mask: cache and step.
        std::int64_t typical;     // The step that it was tuned for.

        bool admits(std::int64_t tokens, std::int64_t cached) const {
            return step.holds(tokens) && past.holds(cached) && total.holds(cached + tokens);
        }
    };

    static Result<Row> row_of(const Profile& profile, const Signature& signature, const std::string& where);

    std::vector<Row> rows_;
};

}  // namespace gatenorm
