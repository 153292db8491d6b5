#include "profiles.h"

#include <algorithm>
#include <cstdlib>

namespace gatenorm {
namespace {

constexpr std::size_t kLengthAxis = 1;  // Of tokens, mask and positions [batch, length].

Range both(const Range& a, const Range& b) { return {std::max(a.min, b.min), std::min(a.max, b.max)}; }

// The range of an input's length, where all its other lengths are those of one sequence.
Result<Range> length_of(const Profile& profile, const InputShape& input, std::size_t axis, const std::string& where) {
    const auto bounds = std::find_if(profile.bounds.begin(), profile.bounds.end(),
                                     [&](const ProfileBounds& b) { return b.input == input.name; });
    bool fits = bounds != profile.bounds.end() && bounds->max.size() == input.shape.size();
    for (std::size_t other = 0; fits && other < input.shape.size(); ++other) {
        const Range range{bounds->min[other], bounds->max[other]};
        fits = other == axis || range.holds(input.shape[other]);
    }
    if (!fits) {
        return bad_input(where + ": profile " + profile.name + " has no bounds for one sequence of input " +
                         input.name);
    }
    return Range{bounds->min[axis], bounds->max[axis]};
}

std::int64_t typical_step(const Profile& profile, const std::string& tokens) {
    const auto bounds = std::find_if(profile.bounds.begin(), profile.bounds.end(),
                                     [&](const ProfileBounds& b) { return b.input == tokens; });
    return bounds->opt[kLengthAxis];
}

}  // namespace

Result<ProfileTable::Row> ProfileTable::row_of(const Profile& profile, const Signature& signature,
                                               const std::string& where) {
    Row row;
    for (const std::optional<Port>& port : {std::optional<Port>(signature.tokens), signature.positions}) {
        if (!port) continue;
        Result<Range> step = length_of(profile, {port->name, {1, 1}}, kLengthAxis, where);
        if (!step) return step.error();
        row.step = both(row.step, *step);
    }
    if (signature.mask) {
        Result<Range> total = length_of(profile, {signature.mask->name, {1, 1}}, kLengthAxis, where);
        if (!total) return total.error();
        row.total = *total;
    }
    for (const CachePort& cache : signature.caches) {
        Result<Range> past = length_of(profile, {cache.past.name, cache.past_shape(0)}, cache.length_axis, where);
        if (!past) return past.error();
        row.past = both(row.past, *past);
    }
    row.typical = typical_step(profile, signature.tokens.name);
    return row;
}

Result<ProfileTable> ProfileTable::make(const std::vector<Profile>& profiles, const Signature& signature,
                                        const std::string& where) {
    ProfileTable table;
    for (const Profile& profile : profiles) {
        Result<Row> row = row_of(profile, signature, where);
        if (!row) return row.error();
        table.rows_.push_back(*row);
    }
    if (table.rows_.empty()) return bad_input(where + ": has no optimisation profile in the manifest");
    return table;
}

std::optional<std::size_t> ProfileTable::choose(std::int64_t step, std::int64_t past) const {
    std::optional<std::size_t> best;
    for (std::size_t index = 0; index < rows_.size(); ++index) {
        if (!rows_[index].admits(step, past)) continue;
        const auto distance = [&](std::size_t row) { return std::abs(rows_[row].typical - step); };
        if (!best || distance(index) < distance(*best)) best = index;
    }
    return best;
}

std::int64_t ProfileTable::longest_step(std::int64_t past) const {
    std::int64_t longest = 0;
    for (const Row& row : rows_) {
        const std::int64_t most = std::min(row.step.max, row.total.max - past);
        if (row.admits(most, past)) longest = std::max(longest, most);
    }
    return longest;
}

}  // namespace gatenorm
