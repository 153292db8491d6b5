// Which of an engine's optimisation profiles takes a step.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "signature.h"

namespace gatenorm {

class ProfileTable {
public:
    // Bounds of every input of the signature in every profile.
    static Result<ProfileTable> make(const std::vector<Profile>& profiles, const Signature& signature,
                                     const std::string& where);

    // Of the profiles that take the step, the one that was tuned for the nearest number of tokens.
    std::optional<std::size_t> choose(std::int64_t step, std::int64_t past) const;

    // The most tokens that any profile takes behind a cache of `past`; 0: none takes one.
    std::int64_t longest_step(std::int64_t past) const;

private:
    using Bounds = std::vector<ProfileBounds>;  // In the order of input_shapes(), tokens first.

    ProfileTable(std::vector<Bounds> profiles, Signature signature)
        : profiles_(std::move(profiles)), signature_(std::move(signature)) {}

    bool admits(const Bounds& bounds, std::int64_t step, std::int64_t past) const;
    std::int64_t longest_step(const Bounds& bounds, std::int64_t past) const;

    std::vector<Bounds> profiles_;
    Signature signature_;
};

}  // namespace gatenorm
