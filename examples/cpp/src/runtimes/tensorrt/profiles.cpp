#include "profiles.h"

#include <algorithm>
#include <cstdlib>

namespace gatenorm {
namespace {

constexpr std::size_t kTokens = 0;      // The place of the token input among the bounds.
constexpr std::size_t kLengthAxis = 1;  // Of tokens, mask and positions [batch, length].

bool within(const ProfileBounds& bounds, const Shape& shape) {
    if (bounds.min.size() != shape.size()) return false;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
        if (shape[axis] < bounds.min[axis] || shape[axis] > bounds.max[axis]) return false;
    }
    return true;
}

}  // namespace

Result<ProfileTable> ProfileTable::make(const std::vector<Profile>& profiles, const Signature& signature,
                                        const std::string& where) {
    std::vector<Bounds> table;
    for (const Profile& profile : profiles) {
        Bounds bounds;
        for (const InputShape& input : input_shapes(signature, 1, 0)) {
            const auto found = std::find_if(profile.bounds.begin(), profile.bounds.end(),
                                            [&](const ProfileBounds& b) { return b.input == input.name; });
            if (found == profile.bounds.end() || found->max.size() != input.shape.size()) {
                return bad_input(where + ": profile " + profile.name + " has no bounds that fit input " + input.name);
            }
            bounds.push_back(*found);
        }
        table.push_back(std::move(bounds));
    }
    if (table.empty()) return bad_input(where + ": has no optimisation profile in the manifest");
    return ProfileTable(std::move(table), signature);
}

std::optional<std::size_t> ProfileTable::choose(std::int64_t step, std::int64_t past) const {
    std::optional<std::size_t> best;
    std::int64_t best_distance = 0;
    for (std::size_t index = 0; index < profiles_.size(); ++index) {
        if (!admits(profiles_[index], step, past)) continue;
        const std::int64_t distance = std::abs(profiles_[index][kTokens].opt[kLengthAxis] - step);
        if (best && distance >= best_distance) continue;
        best = index;
        best_distance = distance;
    }
    return best;
}

std::int64_t ProfileTable::longest_step(std::int64_t past) const {
    std::int64_t longest = 0;
    for (const Bounds& bounds : profiles_) longest = std::max(longest, longest_step(bounds, past));
    return longest;
}

bool ProfileTable::admits(const Bounds& bounds, std::int64_t step, std::int64_t past) const {
    const std::vector<InputShape> shapes = input_shapes(signature_, step, past);
    for (std::size_t index = 0; index < shapes.size(); ++index) {
        if (!within(bounds[index], shapes[index].shape)) return false;
    }
    return true;
}

std::int64_t ProfileTable::longest_step(const Bounds& bounds, std::int64_t past) const {
    std::int64_t longest = bounds[kTokens].max[kLengthAxis];
    if (signature_.mask) longest = std::min(longest, bounds[kTokens + 1].max[kLengthAxis] - past);
    return longest > 0 && admits(bounds, longest, past) ? longest : 0;
}

}  // namespace gatenorm
